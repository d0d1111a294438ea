"""Train a classifier, whose backbone detectors can then load, from a config, or evaluate classifiers with --eval-only.

    resnet-backbones pretrain --config imagenet_resnet50.yaml [--resume] [key=value …]
    resnet-backbones pretrain --config imagenet_resnet50.yaml --eval-only weights=a.pt evaluation.views=ten_crop
    resnet-backbones pretrain --config imagenet_resnet50.yaml --eval-only weights=a.safetensors ensemble=[b.safetensors]

With --num-gpus N, or under torchrun, the same command uses N processes, one per GPU.
"""

from typing import TYPE_CHECKING

from ..config import PretrainConfig
from .launch import run

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(argv: list[str] | None = None) -> None:
    run("pretrain", __doc__, PretrainConfig, job, check, argv)


def check(config: "DictConfig", eval_only: bool) -> None:
    from . import pretraining

    pretraining.check(config, eval_only)


def job(config: "DictConfig", eval_only: bool, resume: bool) -> None:
    from . import pretraining

    if eval_only:
        pretraining.evaluate(config)
    elif config.compare:
        pretraining.compare(config, resume)
    else:
        pretraining.train(config, resume)
