#!/usr/bin/env python3
"""Seconds per training iteration of Faster R-CNN: our loop and model against a bare loop over torchvision's own.

    python -m benchmarks.training_loop --config bccd_faster_rcnn_R18.yaml [solver.max_iter=40]

The same network, settings, images and workers, in turns; the first quarter of a turn is not counted.
"""

import argparse
import itertools
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch.utils.data import DataLoader

from resnet_backbones import fold_norms
from resnet_backbones.config import load_config
from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.loader import build_train_loader
from resnet_backbones.detectors import build_detector
from resnet_backbones.errors import one_line_errors
from resnet_backbones.training.curves import read_rows
from resnet_backbones.training.loop import fit, memory_format

from .accuracy.torchvision import build_model


def ours(config: DictConfig, dataset: DetectionDataset) -> list[float]:
    """Seconds of each iteration of `fit`."""
    loader = partial(
        build_train_loader,
        dataset,
        config.solver.batch_size,
        num_workers=config.data.num_workers,
        seed=0,
        aspect_ratio_grouping=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = fold_norms(build_detector(config, len(dataset.classes)))
        model.to(memory_format=memory_format(model, config.solver))
        fit(model, loader, config.solver, Path(folder), lambda: {"bbox/AP": 0.0})
        rows = read_rows(Path(folder))
    return [config.solver.batch_size / row["images_per_second"] for row in rows if "loss" in row]


def read_bare(dataset: DetectionDataset, indices: list[int]) -> tuple[list[torch.Tensor], list[dict]]:
    images, targets, data = [], [], dataset.sets[0]
    for i in indices:
        pixels = np.array(Image.open(dataset.path(i)).convert("RGB"))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
        objects = [o for o in data.objects(dataset.images[i]) if min(o["bbox"][2:]) > 0]
        boxes = torch.tensor([o["bbox"] for o in objects])
        boxes[:, 2:] += boxes[:, :2]
        targets.append({"boxes": boxes, "labels": torch.tensor([o["category_id"] for o in objects])})
    return images, targets


def bare(config: DictConfig, dataset: DetectionDataset) -> list[float]:
    """Seconds of each iteration of the shortest loop over torchvision's Faster R-CNN."""
    solver, model = config.solver, build_model(config, len(dataset.classes))
    sgd = torch.optim.SGD(model.parameters(), solver.lr, solver.momentum, weight_decay=solver.weight_decay)
    options = {"num_workers": config.data.num_workers, "shuffle": True, "drop_last": True}
    loader = DataLoader(range(len(dataset)), solver.batch_size, collate_fn=partial(read_bare, dataset), **options)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    marks = [time.perf_counter()]
    for images, targets in itertools.islice(batches, solver.max_iter):
        loss = sum(model(images, targets).values())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        marks.append(time.perf_counter())
    return np.diff(marks).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="bccd_faster_rcnn_R18")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    with one_line_errors():
        config = load_config(args.config, ["solver.max_iter=40", "solver.log_period=1", *args.overrides])
        dataset = DetectionDataset([load_annotations(config.data.train[0], config.datasets)], train=True)
        ratios = []
        for _ in range(3):
            mine, theirs = (np.mean(loop(config, dataset)[config.solver.max_iter // 4 :]) for loop in (ours, bare))
            ratios.append(mine / theirs)
            print(f"ours {mine:.3f} s  bare torchvision {theirs:.3f} s  ratio {ratios[-1]:.3f}", flush=True)
        print(f"median ratio {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
