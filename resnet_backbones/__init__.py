"""Residual backbones for object detection: one name in one YAML, from ImageNet pretraining to COCO mAP."""

from .backbones import build_backbone, list_backbones
from .fpn import FPN
from .layers import FrozenBatchNorm2d, ShapeSpec

__version__ = "0.1.0"
__all__ = ["FPN", "FrozenBatchNorm2d", "ShapeSpec", "build_backbone", "list_backbones"]
