"""Metrics. Knows no backbone and no head library."""

from .coco import coco_metrics
from .detection import evaluate, predict
from .voc import voc_metrics

__all__ = ["coco_metrics", "evaluate", "predict", "voc_metrics"]
