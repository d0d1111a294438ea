"""Train a detector from a config, or evaluate one with --eval-only.

    resnet-backbones train --config coco_faster_rcnn_R101.yaml [--resume] [key=value …]
    resnet-backbones train --config coco_faster_rcnn_R101.yaml --eval-only weights=output/best.pt

With --num-gpus N, or under torchrun, the same command uses N processes, one per GPU.
"""

from typing import TYPE_CHECKING

from ..config import Config
from .launch import run

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(argv: list[str] | None = None) -> None:
    run("train", __doc__, Config, job, check, argv)


def check(config: "DictConfig", eval_only: bool) -> None:
    from . import training

    training.check(config, eval_only)


def job(config: "DictConfig", eval_only: bool, resume: bool) -> None:
    from . import training

    if eval_only:
        training.evaluate(config)
    else:
        training.train(config, resume)
