"""COCO's box metrics of generated detections: ours and pycocotools called directly."""

import contextlib
import io
import time

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbones.evaluation.coco import METRICS, coco_metrics

from .settings import Settings
from .timing import Row, measure

CLASSES, OBJECTS, DETECTIONS = 80, 7, 100


def evaluators(settings: Settings) -> list[Row]:
    """The seconds are of CPU time, from the content of a file and a list of results to the metrics."""
    truth, found = generate(settings.images)
    results = {}

    def ours() -> None:
        metrics = coco_metrics(truth, found, "bbox")
        results["ours"] = [metrics[f"bbox/{name}"] for name in METRICS]

    def pycocotools() -> None:
        results["pycocotools"] = [100 * v if v > -1 else -1.0 for v in reference(truth, found)]

    rows = measure(
        f"evaluator, CPU time ({settings.images} images, {DETECTIONS} detections each)",
        {"ours": ours, "pycocotools": pycocotools},
        images=settings.images,
        rounds=settings.rounds,
        warmup=0,
        device=torch.device("cpu"),
        clock=time.process_time,
    )
    apart = max(abs(a - b) for a, b in zip(*results.values(), strict=True))
    rows[1].differences["metrics"] = apart
    rows[1].remark = f"metrics identical: {'yes' if apart == 0 else 'no'}"
    return rows


def reference(truth: dict, found: list[dict]) -> list[float]:
    """pycocotools' twelve metrics, of copies, since it adds keys to what it is given."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = truth | {"annotations": [dict(o) for o in truth["annotations"]]}
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes([dict(p) for p in found]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def generate(images: int) -> tuple[dict, list[dict]]:
    """Ground truth of 7 objects an image, and 100 detections: half of them near an object, half anywhere."""
    rng = np.random.default_rng(0)
    count = images * OBJECTS
    sides = np.exp(rng.normal(4, 0.8, (count, 2))).clip(4, 400).round(2)
    objects = np.concatenate([rng.uniform(0, 640 - sides).round(2), sides], 1)
    classes = rng.integers(1, CLASSES + 1, count)
    chosen = rng.integers(0, OBJECTS, (images, DETECTIONS)) + OBJECTS * np.arange(images)[:, None]
    chosen = chosen.ravel()
    near = rng.random(len(chosen)) < 0.5
    spread = np.where(near, 0.1, 2.0)[:, None] * np.tile(objects[chosen, 2:], 2)
    boxes = objects[chosen] + rng.normal(0, 1, (len(chosen), 4)) * spread
    boxes[:, 2:] = np.abs(boxes[:, 2:]) + 1
    labels = np.where(near, classes[chosen], rng.integers(1, CLASSES + 1, len(chosen)))
    scores = rng.random(len(chosen)) * np.where(near, 1, 0.5)
    truth = {
        "images": [{"id": k + 1, "width": 640, "height": 640} for k in range(images)],
        "categories": [{"id": k, "name": f"c{k}"} for k in range(1, CLASSES + 1)],
        "annotations": [
            {"id": k + 1, "image_id": k // OBJECTS + 1, "category_id": label, "bbox": box, "area": box[2] * box[3]}
            | {"iscrowd": 0}
            for k, (label, box) in enumerate(zip(classes.tolist(), objects.tolist(), strict=True))
        ],
    }
    found = [
        {"image_id": k // DETECTIONS + 1, "category_id": label, "bbox": box, "score": score}
        for k, (label, box, score) in enumerate(
            zip(labels.tolist(), boxes.round(2).tolist(), scores.tolist(), strict=True)
        )
    ]
    return truth, found
