"""COCO's detection metrics, equal to those of pycocotools, the reference implementation, to the last bit."""

import numpy as np

from ..data.annotations import Annotations
from ..data.cleaning import clean
from ..data.json_file import without_garbage_collection
from ..errors import UserError, unknown
from .backends import BACKENDS, score_detections
from .detections import read_detections

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOU_TYPES = ("bbox", "segm")
# The IoU, the area and the number of detections of each metric, as pycocotools prints them.
ROWS = [
    *[(iou, "all", 100) for iou in ("0.50:0.95", "0.50", "0.75")],
    *[("0.50:0.95", area, 100) for area in ("small", "medium", "large")],
    *[("0.50:0.95", "all", detections) for detections in (1, 10, 100)],
    *[("0.50:0.95", area, 100) for area in ("small", "medium", "large")],
]


def coco_metrics(
    ground_truth: dict | Annotations, predictions: list[dict], iou_type: str, backend: str = BACKENDS[0]
) -> dict[str, float]:
    """COCO's 12 metrics and per-class AP in percent; -1 if there are no objects to find, as in pycocotools.

    Args:
        ground_truth: a dataset, or the content of a COCO instances file, which is cleaned.
        predictions: COCO's results format, {"image_id", "category_id", "score", "bbox": [x, y, w, h] and for segm
            "segmentation": RLE}. For segm, areas are those of the masks.
        iou_type: "bbox" or "segm", the prefix of the metrics: "bbox/AP", … "bbox/AP-person".
        backend: "hotcoco" or "pycocotools"; the metrics are the same.

    Raises `UserError` if ground truth or predictions lack a key that `iou_type` needs, or images are unknown.
    """
    metrics, _ = evaluate_coco(ground_truth, predictions, iou_type, backend)
    return metrics


def evaluate_coco(
    ground_truth: dict | Annotations, predictions: list[dict], iou_type: str, backend: str = BACKENDS[0]
) -> tuple[dict[str, float], str]:
    """`coco_metrics`, and the twelve lines that pycocotools prints."""
    if iou_type not in IOU_TYPES:
        raise UserError(unknown("iou type", iou_type, IOU_TYPES))
    data = ground_truth
    if not isinstance(data, Annotations):
        data = clean("ground truth", "coco", None, ground_truth, source="the ground truth")
    if not data.is_labeled:
        raise UserError(f"{data.name} has no annotations to score predictions with; is it a test set?")
    with without_garbage_collection():
        scores = score_detections(data, read_detections(data, predictions, iou_type), iou_type, backend)
    metrics = {f"{iou_type}/{name}": _percent(value) for name, value in zip(METRICS, scores.stats, strict=True)}
    precision = scores.precision[:, :, :, 0, -1]  # IoU, recall, class; all areas, 100 detections
    for k, name in enumerate(data.classes):
        found = precision[:, :, k][precision[:, :, k] > -1]
        metrics[f"{iou_type}/AP-{name}"] = _percent(found.mean() if found.size else -1.0)
    return metrics, summary(scores.stats)


def summary(stats: np.ndarray) -> str:
    """The twelve metrics (12,) as pycocotools prints them."""
    lines = []
    for k, ((iou, area, detections), value) in enumerate(zip(ROWS, stats, strict=True)):
        name = "Average Precision  (AP)" if k < 6 else "Average Recall     (AR)"
        lines.append(f" {name} @[ IoU={iou:<9} | area={area:>6} | maxDets={detections:>3} ] = {value:0.3f}\n")
    return "".join(lines)


def _percent(value: float) -> float:
    return float(value) * 100 if value > -1 else -1.0
