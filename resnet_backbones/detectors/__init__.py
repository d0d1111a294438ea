"""Detectors over our backbones. The head library is chosen by name and imported only when it is used."""

import importlib
import inspect
import warnings
from dataclasses import asdict

from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..backbones import RandomFrozenWarning, build_backbone
from ..errors import UserError, unknown
from ..models.compile import compile_backbone
from ..models.initialization import SkipRandomInit
from ..weights import load_state_dict, read_ours

LIBRARIES = ("torchvision", "detectron2")
# Each detector's function, and those it hands settings on to.
DETECTORS = {
    "faster_rcnn": ["faster_rcnn"],
    "mask_rcnn": ["mask_rcnn", "faster_rcnn"],
    "retinanet": ["retinanet"],
    "fcos": ["fcos"],
}


def build_detector(config: DictConfig, num_classes: int) -> nn.Module:
    """The detector of a config: its backbone inside the heads of `detector.library`, with its weights.

    `num_classes` does not count the background. Where the whole detector's `weights` are given, those of the
    backbone alone are not read. Raises `UserError` for an unknown name or weights that do not fit.
    """
    settings = OmegaConf.to_container(config.detector)
    library, name = settings.pop("library"), settings.pop("name")
    if library not in LIBRARIES:
        raise UserError(unknown("detector.library", library, LIBRARIES))
    if name not in DETECTORS:
        raise UserError(unknown("detector.name", name, DETECTORS))
    try:
        heads = importlib.import_module(f"{__name__}.{library}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"detector.library={library} needs {error.name}, which is not installed; see detectron2 in README.md."
        ) from error
    takers = [getattr(heads, taker) for taker in DETECTORS[name]]
    known = {parameter for taker in takers for parameter in inspect.signature(taker).parameters}
    settings = {key: value for key, value in settings.items() if key in known}

    backbone_settings = {k: v for k, v in OmegaConf.to_container(config.backbone).items() if v is not None}
    if not config.backbone.name.endswith("_fpn"):
        backbone_settings = {k: v for k, v in backbone_settings.items() if not k.startswith("fpn_")}
        if settings.get("box_head") == "res5":
            backbone_settings.setdefault("out_features", ["res4", "res5"])
    checkpoint = None if config.weights is None else read_ours(config.weights)
    make_heads = getattr(heads, name)
    if checkpoint is None:
        return make_heads(build_backbone(**backbone_settings), num_classes, **settings)
    with SkipRandomInit(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomFrozenWarning)
        backbone = build_backbone(**backbone_settings | {"weights": None})
        backbone.preprocessing = checkpoint.preprocessing()
        model = make_heads(backbone, num_classes, **settings)
    load_state_dict(model, checkpoint.state, config.weights)
    return model


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
