"""The numbers of a detection report: AP, precision and recall, confusion, errors by kind, calibration, thresholds."""

from dataclasses import replace

import hotcoco
import numpy as np

from ..data.annotations import Annotations
from ..evaluation.backends import hotcoco_evaluation
from ..evaluation.detections import Detections
from .calibration import calibration
from .confusion import confusion_table
from .matching import IGNORED, IOU, RIGHT, Matches, class_thresholds

DEFAULT_THRESHOLD = 0.5  # if there is nothing to choose it by
IOUS = (None, 0.5, 0.75)  # None: the mean over 0.50 to 0.95
KINDS = {"Cls": "classification", "Loc": "localization", "Both": "both", "Dupe": "duplicate", "Bkg": "background",
         "Miss": "missed"}  # fmt: skip


def detection_numbers(
    data: Annotations, found: Detections, iou_type: str, evaluation: hotcoco.COCOeval, matches: Matches
) -> dict:
    """All numbers of the report, JSON-serializable; AP is in percent, None if there is nothing to find.

    Args:
        evaluation: `hotcoco_evaluation(data, found, iou_type)`.
        matches: from `match` at an IoU of 0.5.
    """
    overall, best = class_thresholds(data, found, matches)
    threshold = DEFAULT_THRESHOLD if overall is None else overall["threshold"]
    counted = matches.status != IGNORED
    scores, right = found.scores[counted], matches.status[counted] == RIGHT
    return {
        "iou_type": iou_type,
        "images": len(data),
        "objects": int(matches.to_find.sum()),
        "predictions": len(found.labels),
        "overall": average_precision(evaluation, slice(None)) | _best(overall),
        "threshold": threshold,
        "thresholds": {
            name: threshold if row is None else row["threshold"] for name, row in zip(data.classes, best, strict=True)
        },
        "classes": [
            {"class": name, "objects": int((data.labels[matches.to_find] == label).sum())}
            | average_precision(evaluation, label - 1)
            | _best(row)
            for label, (name, row) in enumerate(zip(data.classes, best, strict=True), 1)
        ],
        "precision_recall": precision_recall(evaluation),
        "confusion": confusion(data, found, iou_type, evaluation, matches, threshold),
        "errors": errors_by_kind(evaluation),
        "calibration": calibration(scores, right),
    }


def average_precision(evaluation: hotcoco.COCOeval, classes: int | slice) -> dict[str, float | None]:
    """AP, AP50, AP75, those of small, medium and large objects, and AR, in percent, of a class or over all."""
    precision, recall = (evaluation.eval[key][..., -1] for key in ("precision", "recall"))
    ious = np.asarray(evaluation.params.iou_thrs)
    parts = {"AP": precision[:, :, classes, 0]}
    parts |= {f"AP{round(100 * iou)}": precision[np.isclose(ious, iou)][:, :, classes, 0] for iou in (0.5, 0.75)}
    parts |= {f"AP{size}": precision[:, :, classes, k] for k, size in enumerate("sml", 1)}
    parts["AR"] = recall[:, classes, 0]
    return {name: _percent(values[values > -1]) for name, values in parts.items()}


def precision_recall(evaluation: hotcoco.COCOeval) -> list[dict]:
    """For the IoU 0.5, 0.75 and the mean over all ten, the precision of each class at 101 values of recall, 0 to 1.

    The mean of a curve is its AP. None stands for a class without objects.
    """
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    ious = np.asarray(evaluation.params.iou_thrs)
    curves = []
    for iou in IOUS:
        values = (precision if iou is None else precision[np.isclose(ious, iou)]).mean(0).T
        rows = [row.tolist() if (row > -1).all() else None for row in values]
        curves.append({"iou": "0.50:0.95" if iou is None else f"{iou:.2f}", "classes": rows})
    return curves


def confusion(
    data: Annotations,
    found: Detections,
    iou_type: str,
    evaluation: hotcoco.COCOeval,
    matches: Matches,
    threshold: float,
) -> dict:
    """Counts (K + 1, K + 1) at an IoU of 0.5: rows are the true class, columns the predicted one, the last background.

    In each image, detections of any class are matched to the objects that they overlap most, the highest score first.
    Those with a score below `threshold` and those that COCO ignores, on crowds, are left out.
    """
    ignored = matches.status == IGNORED
    if ignored.any():
        evaluation = hotcoco_evaluation(data, subset(found, ~ignored), iou_type)
    result = evaluation.confusion_matrix(iou_thr=IOU, max_det=len(found.labels) + 1, min_score=threshold)
    table = confusion_table(result["matrix"].astype(int), [*data.classes, "background"])
    return {"iou": IOU, "threshold": threshold} | table


def errors_by_kind(evaluation: hotcoco.COCOeval) -> list[dict]:
    """TIDE (arXiv 2008.08115): how often each kind of error occurs, and the AP50 in percent that fixing it would add.

    Kinds are told apart by the IoU with the nearest object: from 0.5 on, a wrong class is a classification error; from
    0.1 to 0.5, the right class is a localization error and a wrong one both; anything below is background.
    """
    result = evaluation.tide_errors(pos_thr=IOU)
    return [
        {"kind": name, "count": int(result["counts"][key]), "cost": 100 * float(result["delta_ap"][key])}
        for key, name in KINDS.items()
    ]


def subset(found: Detections, kept: np.ndarray) -> Detections:
    """The detections that the (N,) bool `kept` marks."""
    return replace(
        found,
        image_index=found.image_index[kept],
        labels=found.labels[kept],
        scores=found.scores[kept],
        boxes=None if found.boxes is None else found.boxes[kept],
        masks=None if found.masks is None else [found.masks[j] for j in np.flatnonzero(kept).tolist()],
    )


def _best(row: dict | None) -> dict[str, float]:
    return {f"best_{key}": value for key, value in (row or {}).items()}


def _percent(values: np.ndarray) -> float | None:
    return 100 * float(values.mean()) if values.size else None
