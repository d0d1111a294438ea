#!/usr/bin/env python3
"""Seconds per training iteration of Faster R-CNN: our loop and model beside a bare loop over torchvision's own model.

    tools/benchmark_training.py --config bccd_faster_rcnn_R18.yaml [--iterations 40] [--rounds 3] [key=value …]

Both train the same network with the same settings, images and number of loader workers, in turns within one process.
The first quarter of a turn warms up and is not counted. Prints the mean of each turn and the ratios.
"""

import argparse
import itertools
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from omegaconf import DictConfig
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from resnet_backbones.config import load_config
from resnet_backbones.data import DetectionDataset, build_train_loader, load_annotations
from resnet_backbones.data.annotations import trainable_box
from resnet_backbones.detectors import build_detector
from resnet_backbones.errors import one_line_errors
from resnet_backbones.training import fit


def ours(config: DictConfig, dataset: DetectionDataset) -> list[float]:
    """Seconds of each iteration of `fit`."""
    options = {"num_workers": config.data.num_workers, "seed": 0}
    loader = partial(build_train_loader, dataset, config.solver.batch_size, **options)
    with tempfile.TemporaryDirectory() as folder:
        model = build_detector(config, len(dataset.classes))
        fit(model, lambda start: loader(start=start), config.solver, Path(folder), lambda: {"bbox/AP": 0.0})
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [config.solver.batch_size / row["images_per_second"] for row in rows if "loss" in row]


class BareDataset(Dataset):
    """PIL to a float tensor, and the boxes."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.data = dataset.sets[0]
        self.images = [record for _, record in dataset.records]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        image = self.images[index]
        pixels = np.array(Image.open(self.data.image_root / image["file_name"]).convert("RGB"))
        objects = self.data.objects[image["id"]]
        boxes = [trainable_box(o["bbox"], image["width"], image["height"]) for o in objects]
        labels = [o["category_id"] for o, box in zip(objects, boxes, strict=True) if box]
        target = {"boxes": torch.tensor([box for box in boxes if box]).float(), "labels": torch.tensor(labels)}
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, target


def bare(config: DictConfig, dataset: DetectionDataset) -> list[float]:
    """Seconds of each iteration of the shortest loop over torchvision's Faster R-CNN."""
    d, width = config.detector, config.backbone.fpn_channels
    resnet = getattr(torchvision.models, config.backbone.name.removesuffix("_fpn"))()
    layers = {f"layer{k + 1}": str(k) for k in range(4)}
    model = FasterRCNN(
        BackboneWithFPN(resnet, layers, [resnet.inplanes // 8 * 2**k for k in range(4)], width),
        min_size=list(d.min_size),
        max_size=d.max_size,
        rpn_anchor_generator=AnchorGenerator(d.anchor_sizes, [d.aspect_ratios] * len(d.anchor_sizes)),
        box_head=TwoMLPHead(width * d.box_pool_size**2, d.box_head_width),
        box_predictor=FastRCNNPredictor(d.box_head_width, len(dataset.classes) + 1),
        **{k: v for k, v in d.items() if k.startswith(("rpn_", "box_")) and not k.endswith(("_size", "_width"))},
    )
    solver = config.solver
    optimizer = torch.optim.SGD(model.parameters(), solver.lr, solver.momentum, weight_decay=solver.weight_decay)
    options = {"num_workers": config.data.num_workers, "shuffle": True, "drop_last": True, "collate_fn": list}
    loader = DataLoader(BareDataset(dataset), solver.batch_size, **options)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    marks = [time.perf_counter()]
    for samples in itertools.islice(batches, solver.max_iter):
        images, targets = zip(*samples, strict=True)
        loss = sum(model(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        marks.append(time.perf_counter())
    return np.diff(marks).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="bccd_faster_rcnn_R18")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    with one_line_errors():
        config = load_config(
            args.config, [*args.overrides, f"solver.max_iter={args.iterations}", "solver.log_period=1"]
        )
        dataset = DetectionDataset([load_annotations(config.data.train[0], config.datasets)], train=True)
        ratios = []
        for _ in range(args.rounds):
            mine, theirs = (np.mean(loop(config, dataset)[args.iterations // 4 :]) for loop in (ours, bare))
            ratios.append(mine / theirs)
            print(f"ours {mine:.3f} s  bare torchvision {theirs:.3f} s  ratio {ratios[-1]:.3f}", flush=True)
        print(f"median ratio {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
