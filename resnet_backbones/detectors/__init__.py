"""Detectors over our backbones. The head library is chosen by name and imported only when it is used."""

import importlib
from dataclasses import asdict, fields

from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..backbones import allow_random_frozen, build_backbone
from ..errors import UserError, unknown
from ..models.compile import compile_backbone
from ..weights import load_state_dict, read_ours
from .ranks import global_batch
from .settings import SETTINGS

__all__ = ["LIBRARIES", "SETTINGS", "build_detector", "compile_detector", "describe", "global_batch"]

LIBRARIES = ("torchvision", "detectron2")


def build_detector(config: DictConfig, num_classes: int) -> nn.Module:
    """The detector of a config: its backbone inside the heads of `detector.library`, with its weights.

    `num_classes` does not count the background. Where the whole detector's `weights` are given, those of the
    backbone alone are not read. Raises `UserError` for an unknown name or weights that do not fit.
    """
    settings = OmegaConf.to_container(config.detector)
    library, name = settings.pop("library"), settings.pop("name")
    if library not in LIBRARIES:
        raise UserError(unknown("detector.library", library, LIBRARIES))
    if name not in SETTINGS:
        raise UserError(unknown("detector.name", name, SETTINGS))
    try:
        make_heads = getattr(importlib.import_module(f"{__name__}.{library}"), name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"detector.library={library} needs {error.name}, which is not installed; see docs/detectron2.md."
        ) from error
    settings = {field.name: settings[field.name] for field in fields(SETTINGS[name])}
    options = backbone_options(config)
    if config.weights is None:
        return make_heads(build_backbone(**options), num_classes, **settings)
    checkpoint = read_ours(config.weights)
    with allow_random_frozen():
        backbone = build_backbone(**options | {"weights": None})
    backbone.preprocessing = checkpoint.preprocessing()
    model = make_heads(backbone, num_classes, **settings)
    load_state_dict(model, checkpoint.state, config.weights)
    return model


def backbone_options(config: DictConfig) -> dict:
    """The arguments of `build_backbone` in a detector's config."""
    options = {k: v for k, v in OmegaConf.to_container(config.backbone).items() if v is not None}
    if not config.backbone.name.endswith("_fpn"):
        options = {k: v for k, v in options.items() if not k.startswith("fpn_")}
        if config.detector.box_head == "res5":
            options.setdefault("out_features", ["res4", "res5"])
    return options


def compile_detector(model: nn.Module, mode: str) -> None:
    """Compile the backbone of a detector, and pad its images to the few sizes that this needs (`compile_backbone`)."""
    backbone = compile_backbone(getattr(model.backbone, "net", model.backbone), mode)
    model.transform.size_divisible = backbone.size_divisible


def describe(model: nn.Module, classes: list[str]) -> dict:
    """What a checkpoint says of a detector: its backbone, its preprocessing and its classes."""
    return {
        "architecture": model.backbone.architecture,
        "preprocessing": asdict(model.transform.preprocessing),
        "classes": classes,
    }
