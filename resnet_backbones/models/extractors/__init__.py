"""Other families of networks under the contract of our ResNet: torchvision's, ZFNet, and any of timm's."""

import functools
from collections.abc import Callable

from torch import nn

from .timm import timm_backbone
from .torchvision import TABLE, torchvision_extractor
from .zfnet import zfnet

# name -> maker(*, norm="BN", in_channels=3, out_features=("res2", "res3", "res4", "res5"))
EXTRACTORS: dict[str, Callable[..., nn.Module]] = {
    "zfnet": zfnet,
    **{name: functools.partial(torchvision_extractor, name) for name in TABLE},
}

__all__ = ["EXTRACTORS", "timm_backbone"]
