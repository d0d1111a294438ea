"""Which detections are right: COCO's matching at one IoU, and what follows from it for each score threshold."""

import math
from dataclasses import dataclass

import hotcoco
import numpy as np

from ..data.annotations import Annotations
from ..evaluation.backends import scored_objects
from ..evaluation.detections import Detections

IOU = 0.5
DECIMALS = 4  # of a score in a page
IGNORED, WRONG, RIGHT = -1, 0, 1


@dataclass
class Matches:
    """N detections matched with M objects at one IoU.

    A match does not depend on detections of lower scores, so it holds for every score threshold.
    """

    status: np.ndarray  # (N,), RIGHT, WRONG, or IGNORED: on a crowd, or beyond the 100 best of its class and image
    object_of: np.ndarray  # (N,), the object that a detection matches, -1 without one
    detection_of: np.ndarray  # (M,), the detection that an object is matched by, -1 without one
    to_find: np.ndarray  # (M,), bool: not a crowd, and with masks it has one


def match(
    data: Annotations, found: Detections, iou_type: str, evaluation: hotcoco.COCOeval, iou: float = IOU
) -> Matches:
    """The matches of `evaluation`, from `hotcoco_evaluation(data, found, iou_type)`, at one of COCO's ten IoUs."""
    diagnostics = evaluation.image_diagnostics(iou_thr=iou)
    status = np.full(len(found.labels), IGNORED)
    for k, name in diagnostics["dt_status"].items():
        status[k - 1] = RIGHT if name == "tp" else WRONG
    objects = scored_objects(data, iou_type)
    object_of, detection_of = np.full(len(status), -1), np.full(len(data.labels), -1)
    for k, j in diagnostics["dt_match"].items():
        if status[k - 1] == RIGHT:
            object_of[k - 1], detection_of[objects[j - 1]] = objects[j - 1], k - 1
    to_find = np.zeros(len(data.labels), bool)
    to_find[objects] = data.crowds[objects] == 0
    return Matches(status, object_of, detection_of, to_find)


def best_threshold(scores: np.ndarray, status: np.ndarray, to_find: int) -> dict[str, float] | None:
    """The score threshold with the best F1, as `threshold`, `f1`, `precision` and `recall`.

    Detections with a score of at least `threshold` are kept; it has the fewest decimals, at least two, that keep the
    same ones. None if no detection is right.

    Args:
        scores, status: (N,), of the detections of one class, or of all.
        to_find: the number of objects.
    """
    counted = status != IGNORED
    order = np.argsort(-scores[counted], kind="stable")
    scores, right = scores[counted][order], np.cumsum(status[counted][order] == RIGHT)
    if not len(right) or not right[-1]:
        return None
    kept = np.arange(1, len(right) + 1)
    f1 = 2 * right / (kept + to_find)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # equal scores are kept together
    k = int(f1.argmax())
    return {
        "threshold": _shortest(*np.append(scores, -np.inf)[k : k + 2].tolist()),
        "f1": float(f1[k]),
        "precision": float(right[k] / kept[k]),
        "recall": float(right[k] / to_find),
    }


def _shortest(score: float, lower: float) -> float:
    """The number with the fewest decimals, at least two, that is at most `score` and above `lower`."""
    rounded = (math.floor(score * 10**digits) / 10**digits for digits in range(2, DECIMALS + 1))
    return next((value for value in rounded if lower < value <= score), score)


def class_thresholds(data: Annotations, found: Detections, matches: Matches) -> tuple[dict | None, list[dict | None]]:
    """`best_threshold` over all classes, and of each class."""
    overall = best_threshold(found.scores, matches.status, int(matches.to_find.sum()))
    counts = np.bincount(data.labels[matches.to_find], minlength=len(data.classes) + 1)
    of_classes = []
    for label in range(1, len(data.classes) + 1):
        own = found.labels == label
        of_classes.append(best_threshold(found.scores[own], matches.status[own], int(counts[label])))
    return overall, of_classes


def worst_images(
    data: Annotations, found: Detections, matches: Matches, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The images from the worst to the best, and the F1 of each (I,), at a score threshold.

    F1 is 1 for an image with nothing to find and nothing found; among equals, the image with more errors is worse.
    """
    kept = (found.scores >= threshold) & (matches.status != IGNORED)
    right = np.bincount(found.image_index[kept & (matches.status == RIGHT)], minlength=len(data))
    total = np.bincount(found.image_index[kept], minlength=len(data))
    total += np.bincount(data.image_index[matches.to_find], minlength=len(data))
    f1 = np.where(total == 0, 1.0, 2 * right / np.maximum(total, 1))
    return np.lexsort([2 * right - total, f1]), f1
