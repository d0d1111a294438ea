"""PASCAL VOC's average precision at IoU 0.5: over eleven points (2007), and as the area under the curve."""

from collections import defaultdict

import numpy as np


def voc_metrics(ground_truth: dict, predictions: list[dict]) -> dict[str, float]:
    """ "voc/AP50_11point" and "voc/AP50_area", the latter also per class ("voc/AP50_area-dog"), in percent.

    Arguments as in `coco_metrics`. Objects with `iscrowd` (VOC's difficult) are ignored. Boxes are edges,
    x0 = xmin - 1 and x1 = xmax, so that their IoU equals the devkit's IoU of inclusive pixels.
    """
    objects, found = defaultdict(list), defaultdict(list)
    for o in ground_truth["annotations"]:
        objects[o["category_id"]].append(o)
    for p in predictions:
        found[p["category_id"]].append(p)

    eleven_point, area, metrics = [], [], {}
    for category in ground_truth["categories"]:
        if all(o["iscrowd"] for o in objects[category["id"]]):
            continue  # nothing to find
        recall, precision = recall_precision(objects[category["id"]], found[category["id"]])
        eleven_point.append(eleven_point_ap(recall, precision))
        area.append(area_ap(recall, precision))
        metrics[f"voc/AP50_area-{category['name']}"] = 100 * area[-1]
    summary = {"voc/AP50_11point": eleven_point, "voc/AP50_area": area}
    return {name: 100 * float(np.mean(aps)) if aps else -1.0 for name, aps in summary.items()} | metrics


def recall_precision(objects: list[dict], predictions: list[dict], iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (M,) of one class after each detection, in order of decreasing score.

    Each detection is matched with the object it overlaps most. If their IoU is above `iou`, it is a true positive,
    unless an earlier one has the same object, and ignored if the object is difficult.
    """
    order = np.argsort([-p["score"] for p in predictions], kind="stable")
    best, overlap = best_overlaps(predictions, objects)
    best, over = best[order], overlap[order] > iou
    ids, difficult = np.array([o["id"] for o in objects]), np.array([bool(o["iscrowd"]) for o in objects])
    counted = np.ones(len(order), dtype=bool)
    counted[over] = ~difficult[best[over]]
    matched = np.flatnonzero(over & counted)
    _, first = np.unique(ids[best[matched]], return_index=True)
    true = np.zeros(len(order), dtype=bool)
    true[matched[first]] = True
    hits = np.cumsum(true[counted], dtype=float)
    total = sum(not o["iscrowd"] for o in objects)
    return hits / total, hits / np.arange(1, len(hits) + 1)


def best_overlaps(predictions: list[dict], objects: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """For each of M predictions, the index of the object in its image that it overlaps most, and their IoU.

    The IoU is 0 if its image has no objects. Image by image, which takes little memory.
    """
    boxes, others = _xyxy(predictions), _xyxy(objects)
    best, overlap = np.zeros(len(boxes), dtype=int), np.zeros(len(boxes))
    candidates = _by_image(objects)
    for image_id, rows in _by_image(predictions).items():
        if image_id in candidates:
            columns = candidates[image_id]
            ious = _box_iou(boxes[rows], others[columns])
            nearest = ious.argmax(1)
            best[rows], overlap[rows] = columns[nearest], ious[np.arange(len(rows)), nearest]
    return best, overlap


def eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC 2007: the mean of the best precision at recall 0, 0.1 … 1 or more."""
    return float(np.mean([precision[recall >= t].max(initial=0) for t in np.linspace(0, 1, 11)]))


def area_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC since 2010: the area under the precision curve, made monotonic from the right."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * envelope))


def _by_image(entries: list[dict]) -> dict[int, np.ndarray]:
    indices = defaultdict(list)
    for k, entry in enumerate(entries):
        indices[entry["image_id"]].append(k)
    return {image_id: np.array(rows) for image_id, rows in indices.items()}


def _xyxy(entries: list[dict]) -> np.ndarray:
    boxes = np.array([e["bbox"] for e in entries], dtype=float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (M, N) of boxes (M, 4) and (N, 4), xyxy; NaN for two boxes without area."""
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    shared = sides.clip(0).prod(2)
    areas_a, areas_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    with np.errstate(invalid="ignore"):
        return shared / (areas_a[:, None] + areas_b - shared)
