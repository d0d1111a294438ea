"""The views of an image (C, H, W) that evaluation averages over: a list of stacks (V, C, h, w), all uint8."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..preprocessing import Preprocessing

Views = Callable[[Tensor], list[Tensor]]


def build_views(name: str, scales: Sequence[int], preprocessing: Preprocessing) -> Views:
    """The function from an image to its views: "center", "ten_crop" or "multi_scale" over `scales`."""
    resize, size = preprocessing.resize, preprocessing.size
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    if name == "multi_scale":
        return partial(multi_scale, scales=list(scales), interpolation=interpolation)
    make = {"center": center, "ten_crop": ten_crop}[name]
    return partial(make, resize=resize, size=size, interpolation=interpolation)


def center(image: Tensor, resize: int, size: int, interpolation: v2.InterpolationMode) -> list[Tensor]:
    """The shorter side resized to `resize`, then the center crop of `size`: one stack of one view."""
    return [F.center_crop(F.resize(image, [resize], interpolation), [size, size])[None]]


def ten_crop(image: Tensor, resize: int, size: int, interpolation: v2.InterpolationMode) -> list[Tensor]:
    """The four corners, the center and their mirror images (AlexNet §4.1): one stack of ten views."""
    return [torch.stack(F.ten_crop(F.resize(image, [resize], interpolation), [size, size]))]


def multi_scale(image: Tensor, scales: list[int], interpolation: v2.InterpolationMode) -> list[Tensor]:
    """The whole image and its mirror image, resized to each scale of the shorter side (arXiv 1512.03385 §3.4).

    One stack per scale. The network is applied fully convolutionally: its average pooling takes any size.
    """
    sizes = [F.resize(image, [scale], interpolation) for scale in scales]
    return [torch.stack([whole, whole.flip(-1)]) for whole in sizes]
