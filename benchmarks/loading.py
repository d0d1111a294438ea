"""Detection loaders: images/s from a COCO data set of generated JPEGs to batches of bytes and boxes."""

import contextlib
import cProfile
import io
import json
import pstats
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.loader import build_train_loader

from .peers import MissingError, import_detectron2
from .pictures import draw_jpeg
from .settings import Settings
from .timing import Row, measure

BATCH, WIDTH, HEIGHT = 2, 640, 480
OBJECTS = 7  # per image; COCO's train2017 has 7.3
SHOWN = 5  # functions of the profile


def loaders(settings: Settings) -> list[Row]:
    """Each decodes every image once a round in this process, flips half of them and gives uint8 images with boxes."""
    count = -(-settings.jpegs // BATCH) * BATCH
    with tempfile.TemporaryDirectory() as folder:
        draw_coco(Path(folder), count)
        passes: dict[str, Callable[[], object] | str] = {"ours": _ours(folder), "torchvision": _torchvisions(folder)}
        try:
            passes["detectron2"] = _all(import_detectron2().own_loader(f"{folder}/instances.json", folder, BATCH))
        except MissingError as reason:
            passes["detectron2"] = str(reason)
        what = f"loader ({count} JPEGs of {WIDTH}x{HEIGHT}, no workers)"
        rows = measure(what, passes, images=count, rounds=settings.rounds, warmup=1, device=torch.device("cpu"))
        rows[0].remark = _profile(passes["ours"])
        return rows


def draw_coco(folder: Path, count: int) -> None:
    """JPEGs and their `instances.json`."""
    content = {"images": [], "annotations": [], "categories": [{"id": k, "name": f"c{k}"} for k in range(1, 81)]}
    for k in range(count):
        rng = np.random.default_rng(k)
        draw_jpeg(folder / f"{k}.jpg", WIDTH, HEIGHT, seed=k)
        content["images"].append({"id": k + 1, "file_name": f"{k}.jpg", "width": WIDTH, "height": HEIGHT})
        for _ in range(OBJECTS):
            x, y, w, h = (int(v) for v in rng.integers([0, 0, 20, 20], [400, 300, 200, 150]))
            o = {"id": len(content["annotations"]) + 1, "image_id": k + 1, "category_id": int(rng.integers(1, 81))}
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            content["annotations"].append(
                o | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": outline}
            )
    (folder / "instances.json").write_text(json.dumps(content))


def _ours(folder: str) -> Callable[[], object]:
    spec = {"format": "coco", "root": folder, "annotations": f"{folder}/instances.json"}
    dataset = DetectionDataset([load_annotations("drawn", {"drawn": spec})], train=True)
    batches = iter(build_train_loader(dataset, BATCH, num_workers=0, seed=0, aspect_ratio_grouping=True))

    def once() -> None:
        for _ in range(len(dataset) // BATCH):
            next(batches)

    return once


def _torchvisions(folder: str) -> Callable[[], object]:
    transforms = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip()])
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = datasets.CocoDetection(folder, f"{folder}/instances.json", transforms=transforms)
    dataset = datasets.wrap_dataset_for_transforms_v2(dataset, target_keys=("image_id", "boxes", "labels"))
    return _all(DataLoader(dataset, BATCH, shuffle=True, collate_fn=lambda samples: tuple(zip(*samples, strict=True))))


def _all(batches: Iterable) -> Callable[[], object]:
    def once() -> None:
        for _ in batches:
            pass

    return once


def _profile(run: Callable[[], object]) -> str:
    """The functions with the most self time in a call, with their shares."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    times = {name: spent for (_, _, name), (_, _, spent, _, _) in pstats.Stats(profiler).stats.items()}
    longest = sorted(times, key=times.get, reverse=True)[:SHOWN]
    return ", ".join(f"{name.strip('<>')} {100 * times[name] / sum(times.values()):.0f} %" for name in longest)
