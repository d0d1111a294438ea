"""COCO's metrics of generated detections: ours and pycocotools called directly, as functions and as commands."""

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbones.evaluation.coco import METRICS, coco_metrics

from .settings import Settings
from .timing import Row, measure

CLASSES, OBJECTS, DETECTIONS, SIDE = 80, 7, 100, 640
COMMAND_IMAGES = 1000  # scored by the commands
SCRIPT = """
import json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
truth = COCO(sys.argv[1])
evaluation = COCOeval(truth, truth.loadRes(json.load(open(sys.argv[2]))), sys.argv[3])
evaluation.evaluate()
evaluation.accumulate()
evaluation.summarize()
"""


def evaluators(settings: Settings) -> list[Row]:
    """Seconds of CPU time: for the functions from a file's content to the metrics, for the commands all of it."""
    rows = []
    for iou_type in ("bbox", "segm"):
        rows += functions(iou_type, settings)
        with tempfile.TemporaryDirectory() as folder:
            rows += commands(iou_type, settings, Path(folder))
    return rows


def functions(iou_type: str, settings: Settings) -> list[Row]:
    truth, found = generate(settings.images, iou_type)
    results = {}

    def ours() -> None:
        metrics = coco_metrics(truth, found, iou_type)
        results["ours"] = [metrics[f"{iou_type}/{name}"] for name in METRICS]

    def pycocotools() -> None:
        results["pycocotools"] = [100 * v if v > -1 else -1.0 for v in reference(truth, found, iou_type)]

    title = f"scoring of {iou_type}, CPU time ({settings.images} images, {DETECTIONS} detections each)"
    rows = in_turns(title, {"ours": ours, "pycocotools": pycocotools}, settings.images, settings, time.process_time)
    apart = max(abs(a - b) for a, b in zip(*results.values(), strict=True))
    rows[1].differences["metrics"] = apart
    rows[1].remark = f"metrics identical: {'yes' if apart == 0 else 'no'}"
    return rows


def commands(iou_type: str, settings: Settings, folder: Path) -> list[Row]:
    files = [str(folder / "truth.json"), str(folder / "found.json")]
    images = min(settings.images, COMMAND_IMAGES)
    for file, content in zip(files, generate(images, iou_type), strict=True):
        Path(file).write_text(json.dumps(content))
    module = [sys.executable, "-m", "resnet_backbones", "evaluate", "--iou-type", iou_type]
    contenders = {
        "ours": [*module, "--ground-truth", files[0], "--predictions", files[1]],
        "pycocotools": [sys.executable, "-c", SCRIPT, *files, iou_type],
    }
    runs = {
        name: lambda command=command: subprocess.run(command, check=True, capture_output=True, env=os.environ)
        for name, command in contenders.items()
    }
    title = f"the whole command for {iou_type}, CPU time ({images} images, {DETECTIONS} detections each)"
    return in_turns(title, runs, images, settings, children_time)


def in_turns(
    title: str, runs: dict[str, Callable], images: int, settings: Settings, clock: Callable[[], float]
) -> list[Row]:
    device = torch.device("cpu")
    return measure(title, runs, images=images, rounds=settings.rounds, warmup=0, device=device, clock=clock)


def children_time() -> float:
    """CPU seconds of the processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def reference(truth: dict, found: list[dict], iou_type: str) -> list[float]:
    """pycocotools' twelve metrics, from copies, since it adds keys to what it is given."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = truth | {"annotations": [dict(o) for o in truth["annotations"]]}
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes([dict(p) for p in found]), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def generate(images: int, iou_type: str = "bbox") -> tuple[dict, list[dict]]:
    """Ground truth of 7 objects per image, and 100 detections: half of them near an object, half anywhere.

    For segm, objects are ellipses as polygons, detections ellipses as RLE, without boxes.
    """
    rng = np.random.default_rng(0)
    count = images * OBJECTS
    sides = np.exp(rng.normal(4, 0.8, (count, 2))).clip(4, 400).round(2)
    objects = np.concatenate([rng.uniform(0, SIDE - sides).round(2), sides], 1)
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
        "images": [{"id": k + 1, "width": SIDE, "height": SIDE} for k in range(images)],
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
    if iou_type == "segm":
        for o in truth["annotations"]:
            o["segmentation"] = [ellipse(o["bbox"])]
        for p in found:
            runs = rle.merge(rle.frPyObjects([ellipse(p.pop("bbox"))], SIDE, SIDE))
            p["segmentation"] = {"size": [SIDE, SIDE], "counts": runs["counts"].decode()}
    return truth, found


def ellipse(box: list[float], corners: int = 24) -> list[float]:
    """The polygon of an ellipse in a box x, y, width, height, with its corners inside the image."""
    x, y, width, height = box
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    points = [x + width / 2 * (1 + np.cos(angles)), y + height / 2 * (1 + np.sin(angles))]
    return np.stack(points, axis=1).clip(0, SIDE).round(2).ravel().tolist()
