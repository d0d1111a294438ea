"""Metrics. Knows no backbone and no head library."""

from .coco import coco_metrics
from .detection import evaluate, predict
from .imagenet import score_classifiers
from .voc import voc_metrics

__all__ = ["coco_metrics", "evaluate", "predict", "score_classifiers", "voc_metrics"]
