"""Residual backbones for object detection: one name in one YAML, from ImageNet pretraining to COCO mAP."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import build_backbone, list_backbones
    from .inference.predictor import Predictor
    from .models.backbone import ShapeSpec
    from .models.fpn import FPN
    from .models.fuse import fold_norms, fuse
    from .models.layers import FrozenBatchNorm2d

__version__ = "0.2.0"
__all__ = [
    "FPN",
    "FrozenBatchNorm2d",
    "Predictor",
    "ShapeSpec",
    "build_backbone",
    "fold_norms",
    "fuse",
    "list_backbones",
]

_MODULES = {
    "FPN": "models.fpn",
    "FrozenBatchNorm2d": "models.layers",
    "Predictor": "inference.predictor",
    "ShapeSpec": "models.backbone",
    "build_backbone": "backbones",
    "fold_norms": "models.fuse",
    "fuse": "models.fuse",
    "list_backbones": "backbones",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: `--help` needs none of them, nor torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
