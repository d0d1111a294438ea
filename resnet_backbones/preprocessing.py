"""The input that a network expects, which belongs to its weights: a wrong mean or channel order costs accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError

# The statistics of ImageNet's training set, for RGB in [0, 1], as in torchvision and timm.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")  # torchvision's
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class Preprocessing:
    """x = (image · input_range - mean) / std, for an image in [0, 1] with its channels in `channel_order`.

    Args:
        mean: one number per channel, or (3, size, size) for a mean image.
        std: one number per channel.
        channel_order: "RGB" or "BGR".
        input_range: the largest value of an image, usually 1 or 255.
        resize, size, interpolation: of a classifier's evaluation: the shorter side and the center crop in pixels, and
            a name of torchvision's `InterpolationMode`. Detectors resize in their own way.

    Raises `UserError` for values outside these.
    """

    mean: Sequence = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    channel_order: str = "RGB"
    input_range: float = 1.0
    resize: int | None = None
    size: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        numbers = all(values.dtype.kind in "iuf" and np.isfinite(values).all() for values in (mean, std))
        if not numbers or std.shape != (3,) or not std.all() or mean.ndim not in (1, 3) or len(mean) != 3:
            self._refuse("mean and std", (self.mean, self.std), "three numbers each, and std not 0")
        if self.channel_order not in ("RGB", "BGR"):
            self._refuse("channel_order", self.channel_order, "RGB or BGR")
        if not isinstance(self.input_range, (int, float)) or not 0 < self.input_range < 1e6:
            self._refuse("input_range", self.input_range, "the largest value of an image, such as 1 or 255")
        for key, value in (("resize", self.resize), ("size", self.size)):
            if value is not None and not (isinstance(value, int) and 0 < value <= LARGEST_SIDE):
                self._refuse(key, value, f"pixels, 1 to {LARGEST_SIDE}")
        if self.interpolation not in INTERPOLATIONS:
            self._refuse("interpolation", self.interpolation, f"one of {', '.join(INTERPOLATIONS)}")

    @staticmethod
    def _refuse(key: str, value: object, wanted: str) -> None:
        raise UserError(f"preprocessing.{key} is {str(value)[:80]}; it must be {wanted}.")

    def per_channel(self) -> "Preprocessing":
        """The same with a mean image replaced by its mean per channel, for images of any size."""
        return replace(self, mean=tuple(np.reshape(self.mean, (3, -1)).mean(1).tolist()))

    def as_rgb(self) -> tuple[list[float], list[float]]:
        """Mean and std per channel, for RGB in [0, 1]."""
        values = [[v / self.input_range for v in values] for values in (self.per_channel().mean, self.std)]
        mean, std = [v[::-1] for v in values] if self.channel_order == "BGR" else values
        return mean, std

    def for_host(self, host: str) -> tuple[list[float], list[float]]:
        """`as_rgb` for a library that gives its models RGB. Raises `UserError` for weights that take BGR."""
        if self.channel_order == "BGR":
            raise UserError(
                f"The weights take BGR images, and {host} gives RGB; convert them: resnet-backbones convert IN OUT "
                "--to resnet_backbones --channel-order RGB."
            )
        return self.as_rgb()


def imagenet(channel_order: str) -> Preprocessing:
    """The usual preprocessing of weights trained on ImageNet.

    "RGB" is torchvision's and timm's, for images in [0, 1]. "BGR" is that of He et al., also in Caffe2 and detectron2's
    model zoo, for images in [0, 255] from which only the mean is subtracted.
    """
    if channel_order == "RGB":
        return Preprocessing()
    return Preprocessing((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), channel_order="BGR", input_range=255.0)


class Normalize(nn.Module):
    """Normalize RGB images (…, 3, H, W), uint8 or float in [0, 1], on their device.

    If the mean is an image, images of another size are normalized with its mean per channel.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.flip = preprocessing.channel_order == "BGR"
        mean = torch.tensor(preprocessing.mean, dtype=torch.float32) / preprocessing.input_range
        std = torch.tensor(preprocessing.std, dtype=torch.float32) / preprocessing.input_range
        self.register_buffer("mean", mean if mean.ndim == 3 else mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images if images.is_floating_point() else images / 255
        mean = self.mean
        if mean.shape[-2:] not in ((1, 1), images.shape[-2:]):
            mean = mean.mean((-2, -1), keepdim=True)
        return ((images.flip(-3) if self.flip else images) - mean) / self.std


def detector_preprocessing(
    backbone: nn.Module, image_mean: Sequence[float] | None, image_std: Sequence[float] | None
) -> Preprocessing:
    """A detector's preprocessing: the weights'; if it is unknown, `image_mean` and `image_std`, or else ImageNet's.

    Args:
        image_mean, image_std: per channel, for RGB in [0, 1]; None takes the weights' or ImageNet's.

    Raises `UserError` naming both if `image_mean` or `image_std` differs from the weights'.
    """
    return merged_preprocessing(
        getattr(backbone, "preprocessing", None), image_mean, image_std, "detector"
    ).per_channel()


def merged_preprocessing(
    known: Preprocessing | None, image_mean: Sequence[float] | None, image_std: Sequence[float] | None, section: str
) -> Preprocessing:
    """`detector_preprocessing` for weights with the preprocessing `known`; `section` of the config is for messages."""
    if known is None:
        return Preprocessing(tuple(image_mean or IMAGENET_MEAN), tuple(image_std or IMAGENET_STD))
    for name, given, trained in zip(("mean", "std"), (image_mean, image_std), known.as_rgb(), strict=True):
        if given is not None and any(abs(a - b) > 1e-3 for a, b in zip(given, trained, strict=True)):
            raise UserError(
                f"{section}.image_{name} is {list(given)}, but the backbone's weights were trained with "
                f"{[round(v, 4) for v in trained]} (for RGB in [0, 1]); remove it."
            )
    return known
