"""Synthetic ground truth and predictions for the report tests."""

import numpy as np

from resnet_backbones.data.annotations import Annotations
from resnet_backbones.data.cleaning import clean
from resnet_backbones.evaluation.detections import Detections, read_detections


def random_case(
    seed: int, images: int = 12, classes: int = 3, crowds: bool = True, ties: bool = True
) -> tuple[dict, list[dict]]:
    """Random boxes, some of them found, shifted, duplicated, misclassified or missed, and random false positives."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": 10 + k, "file_name": f"{k}.png", "width": 100, "height": 100} for k in range(images)],
        "categories": [{"id": 3 * k + 1, "name": f"class {k}"} for k in range(classes)],
        "annotations": [],
    }
    found = []

    def add_found(image: int, label: int, box: np.ndarray, score: float) -> None:
        box = [*box[:2].tolist(), *np.abs(box[2:]).tolist()]
        found.append({"image_id": image, "category_id": 3 * label + 1, "bbox": box, "score": score})

    for j in range(5 * images):
        image, label = 10 + int(rng.integers(images)), int(rng.integers(classes))
        box = np.array([*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)])
        annotation = {"id": j + 1, "image_id": image, "category_id": 3 * label + 1, "bbox": box.tolist()}
        crowd = int(crowds and rng.random() < 0.1)
        truth["annotations"].append(annotation | {"iscrowd": crowd, "area": float(box[2] * box[3])})
        for _ in range(int(rng.choice(3, p=[0.2, 0.65, 0.15]))):
            other = label if rng.random() < 0.8 else int(rng.integers(classes))
            add_found(image, other, box + rng.normal(0, 3, 4), round(float(rng.uniform(0.3, 1)), 2 if ties else 9))
    for _ in range(2 * images):
        box = np.array([*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)])
        add_found(10 + int(rng.integers(images)), int(rng.integers(classes)), box, float(rng.uniform(0, 0.7)))
    return truth, found


def read(truth: dict, found: list[dict], iou_type: str = "bbox") -> tuple[Annotations, Detections]:
    data = clean("made", "coco", None, truth)
    return data, read_detections(data, found, iou_type)


def iou(one: list[float], other: list[float], crowd: bool = False) -> float:
    """IoU of two boxes (x, y, width, height); over the area of `one` if `other` is a crowd."""
    sides = [min(one[k] + one[k + 2], other[k] + other[k + 2]) - max(one[k], other[k]) for k in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (one[2] * one[3] if crowd else one[2] * one[3] + other[2] * other[3] - both)
