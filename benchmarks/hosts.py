#!/usr/bin/env python3
"""Inference in other libraries' models over our backbones, as they are and after `fuse`, in turns.

    python -m benchmarks.hosts [--rounds 9]

torchvision's Faster R-CNN on an image of 400x600 and its DeepLabV3 on one of 320x480, also over their own ResNet-50.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.segmentation import deeplabv3_resnet50

from resnet_backbones import fuse
from resnet_backbones.hosts.torchvision import backbone, deeplabv3

from .timing import measure

SIZES = {"min_size": 400, "max_size": 667}


def inference(model: nn.Module, images: torch.Tensor | list[torch.Tensor]) -> Callable[[], object]:
    model.eval()

    def run() -> object:
        with torch.no_grad():
            return model(images)

    return run


def contenders(theirs: nn.Module, ours: nn.Module, images: torch.Tensor | list[torch.Tensor]) -> dict[str, Callable]:
    """All with the same weights."""
    ours.load_state_dict(theirs.state_dict())
    fused = fuse(ours).to(memory_format=torch.channels_last)
    return {
        "ours": inference(fused, images),
        "ours, not fused": inference(ours, images),
        "torchvision": inference(theirs, images),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed turns; 9")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    none = {"weights": None, "weights_backbone": None}
    detector = FasterRCNN(backbone("resnet50_fpn"), 91, **SIZES)
    models = {
        "Faster R-CNN": contenders(fasterrcnn_resnet50_fpn(**none, **SIZES), detector, [torch.rand(3, 400, 600)]),
        "DeepLabV3": contenders(
            deeplabv3_resnet50(**none), deeplabv3("resnet50", 21, output_stride=8), torch.rand(1, 3, 320, 480)
        ),
    }
    for name, runs in models.items():
        for row in measure(name, runs, images=1, rounds=args.rounds, warmup=2, device=torch.device("cpu")):
            low, median, high = row.ratios["ours"]
            print(f"{name:14} {row.contender:16} {row.median:.3f} s, fused / it {median:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
