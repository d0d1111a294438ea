"""Metrics of detectors and classifiers. Independent of backbones and head libraries."""

from .classification import score_classifiers
from .coco import coco_metrics
from .detection import evaluate, evaluate_sets, predict, save_results
from .voc import voc_metrics

__all__ = [
    "coco_metrics",
    "evaluate",
    "evaluate_sets",
    "predict",
    "save_results",
    "score_classifiers",
    "voc_metrics",
]
