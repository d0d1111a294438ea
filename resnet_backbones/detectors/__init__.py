"""Detectors over our backbones. The head library is chosen by name and imported only when it is used."""

import importlib
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, fields

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ..backbones import allow_random_frozen, build_backbone
from ..errors import UserError, unknown
from ..models.compile import compile_backbone
from ..weights import (
    Checkpoint,
    below,
    check_architecture,
    find_prefix,
    fit,
    fit_p6,
    read_file,
    read_ours,
    shapes_of,
)
from .ranks import global_batch
from .settings import SETTINGS

__all__ = [
    "LIBRARIES",
    "SETTINGS",
    "build_detector",
    "compile_detector",
    "describe",
    "global_batch",
    "load_detector",
    "stated_config",
]

logger = logging.getLogger(__name__)

LIBRARIES = ("torchvision", "detectron2")


def build_detector(config: DictConfig, num_classes: int, *, new_predictors: bool = False) -> nn.Module:
    """The detector of a config: its backbone inside the heads of `detector.library`, with its weights.

    Args:
        num_classes: without the background.
        new_predictors: if `weights` have another number of classes, take all but the predictors, as for training.

    If the whole detector's `weights` are given, those of the backbone alone are not read. Raises `UserError` for an
    unknown name or weights that do not fit.
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
    known = {field.name for field in fields(SETTINGS[name])}
    settings = {key: value for key, value in settings.items() if key in known}  # earlier checkpoints have fewer
    options = backbone_options(config)
    if config.weights is None:
        return make_heads(build_backbone(**options), num_classes, **settings)
    checkpoint = read_ours(config.weights)
    with allow_random_frozen():
        backbone = build_backbone(**options | {"weights": None})
    check_architecture(backbone, checkpoint, config.weights)
    backbone.preprocessing = checkpoint.preprocessing()
    fit_p6(backbone, checkpoint.state, config.weights)
    model = make_heads(backbone, num_classes, **settings)
    state, kept = without_background(model, checkpoint, config.weights), set()
    if new_predictors:
        with torch.device("meta"), allow_random_frozen():
            other = make_heads(build_backbone(**options | {"weights": None}), num_classes + 1, **settings)
        kept = other_classes(model, other, state)
    fit(model, state, config.weights, kept=kept)
    return model


def other_classes(model: nn.Module, other: nn.Module, state: dict[str, Tensor]) -> set[str]:
    """The names of the predictors of `model` if `state` has them for another number of classes; else none.

    Args:
        other: the same detector for one class more. Tensors of another shape in it predict classes.
    """
    wanted, shapes = shapes_of(model), shapes_of(other)
    predictors = {name for name, shape in wanted.items() if shape != shapes[name]}
    group = below(find_prefix({n: s for n, s in wanted.items() if n not in predictors}, state), state)
    fits = all(name in group and group[name].shape == wanted[name] for name in predictors)
    return set() if fits else predictors


def without_background(model: nn.Module, checkpoint: Checkpoint, source: str) -> dict[str, Tensor]:
    """The tensors of `checkpoint`, for RetinaNet and FCOS without the background, a class in torchvision's own.

    Our files name their classes; in others, it shows in one more row per anchor than there are classes.
    """
    state, wanted = checkpoint.state, shapes_of(model)
    logits = "head.classification_head.cls_logits."
    if ("classes" in checkpoint.metadata and "architecture" in checkpoint.metadata) or f"{logits}weight" not in wanted:
        return state
    prefix, classes = find_prefix(wanted, state), model.head.classification_head.num_classes
    rows, changed = wanted[f"{logits}bias"][0] // classes * (classes + 1), {}
    for name in (f"{prefix}{logits}weight", f"{prefix}{logits}bias"):
        if name in state and len(state[name]) == rows:
            changed[name] = state[name].unflatten(0, (-1, classes + 1))[:, 1:].flatten(0, 1)
    if changed:
        logger.info("%s: its %d classes are assumed to include the background, as in torchvision", source, classes + 1)
    return state | changed


def backbone_options(config: DictConfig) -> dict:
    """The arguments of `build_backbone` in a detector's config."""
    options = {k: v for k, v in OmegaConf.to_container(config.backbone).items() if v is not None}
    if not config.backbone.name.endswith("_fpn"):
        options = {k: v for k, v in options.items() if not k.startswith("fpn_")}
        if config.detector.get("box_head") == "res5":
            options.setdefault("out_features", ["res4", "res5"])
    return options


def compile_detector(model: nn.Module, mode: str) -> None:
    """Compile the backbone of a detector, and pad its images to the few sizes that this needs (`compile_backbone`)."""
    backbone = compile_backbone(getattr(model.backbone, "net", model.backbone), mode)
    model.transform.size_divisible = backbone.size_divisible


def describe(model: nn.Module, config: DictConfig, classes: list[str]) -> dict:
    """What a checkpoint says about a detector: its backbone, its preprocessing, its classes and how to build it."""
    return {
        "architecture": model.backbone.architecture,
        "preprocessing": asdict(model.transform.preprocessing),
        "classes": classes,
        "config": {key: OmegaConf.to_container(config[key]) for key in ("backbone", "detector")},
    }


def stated_config(metadata: dict, source: str) -> DictConfig | None:
    """The sections `backbone` and `detector` in a checkpoint's metadata, to build its detector from; None without any.

    Args:
        source: the file, for messages.

    Raises `UserError` if they do not name the backbone and the detector.
    """
    if "config" not in metadata:
        return None
    what = f"{source} does not say how its detector is built: its metadata"
    return _sections(metadata["config"], what, "the YAML that it was trained with")


def _sections(config: object, what: str, remedy: str) -> DictConfig:
    """`backbone` and `detector` of `config`. Raises `UserError` with `what`, the missing key and the `remedy`."""
    for section, key in (("backbone", "name"), ("detector", "library"), ("detector", "name")):
        stated = config.get(section) if isinstance(config, dict) else None
        if not isinstance(stated, dict) or not isinstance(stated.get(key), str):
            raise UserError(f"{what} has no config.{section}.{key}; give {remedy}.")
    return OmegaConf.create({key: config[key] for key in ("backbone", "detector")})


def given_config(config: object) -> DictConfig:
    """`backbone` and `detector` of the config, or of a mapping like it. Raises `UserError` for anything else."""
    if isinstance(config, (str, os.PathLike)):
        raise UserError(f'config is a path; give its content: resnet_backbones.config.load_config("{config}").')
    content = OmegaConf.to_container(config) if isinstance(config, DictConfig) else config
    return _sections(content, "The given config", 'resnet_backbones.config.load_config("my.yaml")')


def load_detector(
    source: str | os.PathLike, config: DictConfig | dict | None = None, classes: Sequence[str] | None = None
) -> nn.Module:
    """The detector of a checkpoint, in evaluation mode; its `classes` are their names in label order, from 1.

    Args:
        config: of the detector, `load_config("my.yaml")` or its `backbone` and `detector` as dicts, needed if the
            checkpoint does not say how it is built, as those of `train` do.
        classes: needed if the checkpoint does not name them.

    Raises `UserError` naming what has to be given, and for weights that do not fit.
    """
    source = str(source)
    metadata = read_file(source).metadata
    classes = classes or metadata.get("classes")
    sections = stated_config(metadata, source) if config is None else given_config(config)
    if sections is None:
        raise UserError(f"{source} does not say which detector it holds; give the YAML that it was trained with.")
    if not classes:
        raise UserError(f"{source} does not name its classes; give their names in label order.")
    model = build_detector(OmegaConf.merge(sections, {"weights": source}), len(classes)).eval()
    model.classes = list(classes)
    return model
