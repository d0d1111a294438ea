"""PASCAL VOC's average precision at IoU 0.5, by 2007's eleven points and as the area under the curve."""

from collections import defaultdict

import numpy as np
import torch
from torchvision.ops import box_iou


def voc_metrics(ground_truth: dict, predictions: list[dict]) -> dict[str, float]:
    """ "voc/AP50_11point", "voc/AP50_area" and the latter per class ("voc/AP50_area-dog"), in percent.

    Arguments as in `coco_metrics`. Objects of `iscrowd` (VOC's difficult) neither count nor cost. Boxes are edges,
    x0 = xmin - 1 and x1 = xmax, whose continuous IoU is the devkit's IoU of inclusive pixels.
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
    """Recall and precision (M,) of one class after each detection, in order of falling score.

    Each detection is assigned to the object it overlaps most; the first to reach an object with IoU above `iou` is
    true, later ones are false, and one whose object is difficult is left out.
    """
    by_image = defaultdict(list)
    for o in objects:
        by_image[o["image_id"]].append(o)
    taken: set[int] = set()
    true = []
    for p in sorted(predictions, key=lambda p: -p["score"]):
        candidates = by_image[p["image_id"]]
        best, overlap = _best_overlap(p, candidates)
        if overlap > iou and candidates[best]["iscrowd"]:
            continue
        hit = overlap > iou and candidates[best]["id"] not in taken
        if hit:
            taken.add(candidates[best]["id"])
        true.append(hit)
    hits = np.cumsum(true, dtype=float)
    total = sum(not o["iscrowd"] for o in objects)
    return hits / total, hits / np.arange(1, len(true) + 1)


def eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC 2007: the mean over recall 0, 0.1 … 1 of the best precision at that recall or beyond."""
    return float(np.mean([precision[recall >= t].max(initial=0) for t in np.linspace(0, 1, 11)]))


def area_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC 2010 on: the area under the precision curve made monotonic from the right."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * envelope))


def _best_overlap(prediction: dict, candidates: list[dict]) -> tuple[int, float]:
    if not candidates:
        return -1, 0.0
    ious = box_iou(_xyxy([prediction]), _xyxy(candidates))[0]
    best = int(ious.argmax())
    return best, float(ious[best])


def _xyxy(entries: list[dict]) -> torch.Tensor:
    boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float64)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
