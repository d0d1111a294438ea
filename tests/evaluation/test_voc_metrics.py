"""VOC's average precision against the plain loop over detections that the devkit describes."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from resnet_backbones.evaluation.voc import recall_precision, voc_metrics


def xyxy(entries) -> torch.Tensor:
    boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float64)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def loop_over_detections(objects, predictions, iou=0.5) -> tuple[np.ndarray, np.ndarray]:
    by_image = defaultdict(list)
    for o in objects:
        by_image[o["image_id"]].append(o)
    taken, true = set(), []
    for p in sorted(predictions, key=lambda p: -p["score"]):
        candidates, best, overlap = by_image[p["image_id"]], -1, 0.0
        if candidates:
            ious = box_iou(xyxy([p]), xyxy(candidates))[0]
            best = int(ious.argmax())
            overlap = float(ious[best])
        if overlap > iou and candidates[best]["iscrowd"]:
            continue
        hit = overlap > iou and candidates[best]["id"] not in taken
        if hit:
            taken.add(candidates[best]["id"])
        true.append(hit)
    hits = np.cumsum(true, dtype=float)
    return hits / sum(not o["iscrowd"] for o in objects), hits / np.arange(1, len(true) + 1)


def random_case(seed: int) -> tuple[list[dict], list[dict]]:
    """Difficult objects, tied scores and overlaps, integer boxes, boxes without area, images without objects."""
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for k in range(int(rng.integers(1, 120))):
        box = [float(v) for v in (*rng.uniform(0, 50, 2), *rng.uniform(0, 40, 2))]
        if seed % 3 == 0:
            box = [int(v) // 5 * 5 for v in box]
        o = {"id": k, "image_id": int(rng.integers(12)), "category_id": 1, "bbox": box, "iscrowd": int(k % 7 == 6)}
        objects.append(o)
        for _ in range(rng.integers(0, 4)):
            moved = [float(v) for v in np.array(box) + rng.normal(0, 3, 4)] if rng.random() < 0.7 else list(box)
            score = round(float(rng.random()), 1 + seed % 2 * 6)
            image = o["image_id"] if rng.random() < 0.8 else int(rng.integers(20))
            found.append({"image_id": image, "category_id": 1, "bbox": moved, "score": score})
    return objects, [found[i] for i in rng.permutation(len(found))]


@pytest.mark.parametrize("iou", [0.3, 0.5])
@pytest.mark.parametrize("seed", range(25))
def test_recall_and_precision_equal_the_loop_to_the_last_bit(seed, iou):
    objects, found = random_case(seed)
    for ours, theirs in zip(
        recall_precision(objects, found, iou), loop_over_detections(objects, found, iou), strict=True
    ):
        assert ours.tolist() == theirs.tolist()


def test_two_boxes_without_area_do_not_match():
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 3, 0, 0], "iscrowd": 0}]
    found = [{"image_id": 1, "category_id": 1, "bbox": [3, 3, 0, 0], "score": 1.0}]
    assert recall_precision(objects, found)[0].tolist() == [0]


def test_classes_are_scored_separately():
    objects, found = random_case(4)
    second = {"id": 10**6, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 0}
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    alone = voc_metrics({"annotations": objects, "categories": categories[:1]}, found)
    both = voc_metrics({"annotations": [*objects, second], "categories": categories}, found)
    assert both["voc/AP50_area-cat"] == alone["voc/AP50_area-cat"] > 0
    assert both["voc/AP50_area-dog"] == 0
    assert both["voc/AP50_area"] == alone["voc/AP50_area"] / 2
