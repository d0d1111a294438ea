"""Metrics of detectors and classifiers. Independent of backbones and head libraries."""

from .coco import coco_metrics
from .voc import voc_metrics

__all__ = ["coco_metrics", "voc_metrics"]
