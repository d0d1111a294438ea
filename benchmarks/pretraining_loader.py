#!/usr/bin/env python3
"""Images/s of the training loader alone on crops of 224 x 224: ours against torchvision's reference pipeline.

    python -m benchmarks.pretraining_loader [--images FOLDER] [--workers 1] [--turns 5]

FOLDER holds class folders of JPEGs; without it, 400 JPEGs of 500 x 375 are generated. Both pipelines read, decode, crop
(random area, flip) and collate batches of 64 for the model's device, in turns; torchvision's also makes floats and
normalizes them, which ours leaves to the device.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.pictures import draw_jpeg
from resnet_backbones.config import PretrainConfig, load_config
from resnet_backbones.data.augmentation import train_transform
from resnet_backbones.data.classification import ClassificationDataset, build_train_loader
from resnet_backbones.data.imagenet import load_images
from resnet_backbones.errors import one_line_errors
from resnet_backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

BATCH = 64


def ours(folder: str, workers: int) -> Iterable:
    overrides = ["augmentation.crop=random_resized", "augmentation.lighting=0"]
    augmentation = load_config("imagenet_resnet50", overrides, PretrainConfig).augmentation
    dataset = ClassificationDataset(load_images("", folder), train_transform(augmentation, Preprocessing()))
    return build_train_loader(dataset, BATCH, num_workers=workers, seed=0)


def torchvisions(folder: str, workers: int) -> Iterable:
    """The steps of its references/classification/presets.py: PIL images, normalized floats."""
    steps = [
        transforms.RandomResizedCrop(224, antialias=True),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    dataset = datasets.ImageFolder(folder, transforms.Compose(steps))
    endless = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)
    return iter(DataLoader(dataset, BATCH, sampler=endless, num_workers=workers))


def images_per_second(batches: Iterable, count: int) -> float:
    next(batches)  # workers start and fill their queues
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of class folders")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="per turn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with one_line_errors(), tempfile.TemporaryDirectory() as drawn:
        if args.images is None:
            (Path(drawn) / "drawn").mkdir()
            for k in range(400):
                draw_jpeg(Path(drawn) / "drawn" / f"{k}.jpg", 500, 375, seed=k)
        rates: dict[str, list[float]] = {"ours": [], "torchvision": []}
        for turn in range(args.turns):
            for name, make in (("ours", ours), ("torchvision", torchvisions)):
                rates[name].append(images_per_second(make(args.images or drawn, args.workers), args.batches))
            print(f"turn {turn + 1}: " + ", ".join(f"{name} {rate[-1]:.0f} images/s" for name, rate in rates.items()))
        ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
        middle = {name: statistics.median(rate) / max(args.workers, 1) for name, rate in rates.items()}
        print(
            f"median per worker: ours {middle['ours']:.0f}, torchvision {middle['torchvision']:.0f} images/s; ", end=""
        )
        print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
