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
    """x = (image · input_range - mean) / std, for an image (C, H, W) in [0, 1] with its channels in `channel_order`.

    Args:
        mean: one number for each of the C channels, or (C, size, size) for a mean image.
        std: one number per channel.
        channel_order: "RGB", also for any number of channels other than three, or "BGR".
        input_range: the largest value of an image, usually 1 or 255.
        resize, size, interpolation: of a classifier's evaluation: the shorter side and the center crop in pixels, and
            a name of torchvision's `InterpolationMode`. Detectors resize in their own way.

    Raises `UserError` for other values.
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
        fit = numbers and std.ndim == 1 and std.size and std.all() and mean.ndim in (1, 3) and len(mean) == len(std)
        if not fit:
            self._refuse("mean and std", (self.mean, self.std), "one number per channel each, and std not 0")
        if self.channel_order not in ("RGB", "BGR") or (self.channel_order == "BGR" and len(std) != 3):
            self._refuse("channel_order", self.channel_order, "RGB, or BGR of three channels")
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
        return replace(self, mean=tuple(np.reshape(self.mean, (len(self.std), -1)).mean(1).tolist()))

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
    """Normalize images (…, C, H, W), uint8 or float in [0, 1], on their device; three channels are RGB.

    If the mean is an image, images of another size are normalized with its mean per channel. Raises `UserError` for
    images of another number of channels.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.flip = preprocessing.channel_order == "BGR"
        mean = torch.tensor(preprocessing.mean, dtype=torch.float32) / preprocessing.input_range
        std = torch.tensor(preprocessing.std, dtype=torch.float32) / preprocessing.input_range
        self.register_buffer("mean", mean if mean.ndim == 3 else mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-3] != len(self.std):
            raise UserError(f"The network takes {len(self.std)} channels, but the images have {images.shape[-3]}.")
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

    Raises `UserError` naming both if `image_mean` or `image_std` differs from the weights' or does not have one number
    for each channel that the backbone takes.
    """
    known, channels = getattr(backbone, "preprocessing", None), input_channels(backbone)
    return merged_preprocessing(known, image_mean, image_std, "detector", channels).per_channel()


def input_channels(backbone: nn.Module) -> int:
    """The number of channels that the first convolution of a backbone takes; 3 if it has none."""
    convolutions = (m for m in getattr(backbone, "body", backbone).modules() if isinstance(m, nn.Conv2d))
    return next((conv.in_channels for conv in convolutions), 3)


def merged_preprocessing(
    known: Preprocessing | None,
    image_mean: Sequence[float] | None,
    image_std: Sequence[float] | None,
    section: str,
    channels: int = 3,
) -> Preprocessing:
    """`detector_preprocessing` for weights with the preprocessing `known` and a network that takes `channels`.

    What was known for another number of channels is dropped. Without other numbers, each channel of an image that is
    not RGB has the average of ImageNet's three.

    Args:
        section: of the config, for messages.
    """
    for name, given in (("mean", image_mean), ("std", image_std)):
        if given is not None and len(given) != channels:
            raise UserError(
                f"{section}.image_{name} is {list(given)}, of length {len(given)}, but the backbone takes {channels} "
                "channels (backbone.in_channels); give one number per channel."
            )
    if known is None or len(known.std) != channels:
        mean, std = (
            rgb if channels == 3 else (round(sum(rgb) / 3, 6),) * channels for rgb in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return Preprocessing(tuple(image_mean or mean), tuple(image_std or std))
    for name, given, trained in zip(("mean", "std"), (image_mean, image_std), known.as_rgb(), strict=True):
        if given is not None and any(abs(a - b) > 1e-3 for a, b in zip(given, trained, strict=True)):
            raise UserError(
                f"{section}.image_{name} is {list(given)}, but the backbone's weights were trained with "
                f"{[round(v, 4) for v in trained]} (for RGB in [0, 1]); remove it."
            )
    return known
