"""Compare two results files on the same ground truth, with a confidence interval over the choice of images.

hotcoco's own bootstrap counts an image that was drawn twice only once, which makes its intervals a quarter too narrow.
"""

import hotcoco
import numpy as np

from ..data.annotations import Annotations
from ..evaluation.backends import hotcoco_evaluation, ranks
from ..evaluation.detections import Detections
from .matching import IGNORED, RIGHT, match

RECALLS = np.linspace(0, 1, 101)
DRAWS = 300
CONFIDENCE = 0.95


class Resampled:
    """AP of one results file over any resampling of the images."""

    def __init__(self, data: Annotations, found: Detections, iou_type: str, evaluation: hotcoco.COCOeval) -> None:
        matches = [match(data, found, iou_type, evaluation, iou) for iou in evaluation.params.iou_thrs]
        image_order = ranks(data.image_ids.tolist())[found.image_index]
        order = np.lexsort([image_order, -found.scores])  # as in pycocotools: equal scores by image id
        status = np.stack([m.status for m in matches])[:, order]
        labels, images = found.labels[order], found.image_index[order]
        self.ious = len(matches)
        self.detections = []  # of each class: the images of its detections, and which are right and wrong (T, D)
        self.objects = []  # of each class: the images of its objects
        for label in range(1, len(data.classes) + 1):
            own = np.flatnonzero((labels == label) & (status != IGNORED).any(0))
            right, wrong = status[:, own] == RIGHT, (status[:, own] != RIGHT) & (status[:, own] != IGNORED)
            self.detections.append((images[own], right, wrong))
            self.objects.append(data.image_index[matches[0].to_find & (data.labels == label)])

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """(K, T): the AP of each class at each IoU where image k counts `weights[k]` times; NaN without objects."""
        result = np.full((len(self.objects), self.ious), np.nan)
        for k, ((images, right, wrong), objects) in enumerate(zip(self.detections, self.objects, strict=True)):
            to_find = weights[objects].sum()
            if to_find:
                rights, wrongs = ((part * weights[images]).cumsum(1) for part in (right, wrong))
                precision = rights / np.maximum(rights + wrongs, 1)
                precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
                result[k] = [_interpolated(r, p) for r, p in zip(rights / to_find, precision, strict=True)]
        return result


def _interpolated(recall: np.ndarray, precision: np.ndarray) -> float:
    return np.append(precision, 0)[np.searchsorted(recall, RECALLS)].mean()


def compare(data: Annotations, first: Detections, second: Detections, iou_type: str, draws: int = DRAWS) -> dict:
    """AP and AP50 of two results files in percent, and the difference, second minus first, with its interval.

    The interval is the middle 95 % of the differences over `draws` bootstrap samples of the images, the same for both
    files; None for fewer than two images.
    """
    both = [Resampled(data, found, iou_type, hotcoco_evaluation(data, found, iou_type)) for found in (first, second)]
    once = [100 * r.ap(np.ones(len(data), int)) for r in both]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws if len(data) > 1 else 0):
        weights = np.bincount(rng.integers(0, len(data), len(data)), minlength=len(data))
        drawn.append(np.subtract(*(100 * r.ap(weights) for r in reversed(both))))
    parts = {"AP": np.s_[:, :], "AP50": np.s_[:, :1]}
    rows = [_row(name, *(ap[part] for ap in once), [d[part] for d in drawn]) for name, part in parts.items()]
    for k, name in enumerate(data.classes):
        rows.append(_row(name, *(ap[k] for ap in once), [d[k] for d in drawn]))
    return {"draws": len(drawn), "confidence": CONFIDENCE, "rows": rows}


def _row(name: str, first: np.ndarray, second: np.ndarray, drawn: list[np.ndarray]) -> dict:
    means = [_mean(d) for d in drawn]
    means = [m for m in means if m is not None]
    tail = (1 - CONFIDENCE) / 2
    interval = np.quantile(means, [tail, 1 - tail]).tolist() if means else None
    values = {"first": _mean(first), "second": _mean(second), "difference": _mean(second - first)}
    return {"name": name} | values | {"interval": interval}


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
