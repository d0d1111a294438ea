"""Images in all common forms, as tensors."""

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.bit_depth import to_bytes
from ..data.images import LARGEST, read_image
from ..data.tiff import TooLarge
from ..errors import UserError, reason
from ..paths import local_file

LARGEST_IN_TILES = 2**29  # pixels, such as 20,000 x 20,000, whose decoding takes about 5 GB
ROUNDING = 1e-3  # by which a float may leave [0, 1]


def as_tensor(image: object, channels: int, tiled: bool = False) -> Tensor:
    """An image (C, H, W), uint8, or float in [0, 1] if such a tensor is given.

    Args:
        image: a path or URL, which is turned upright by its EXIF data; a PIL image, as it is; an array (H, W, C)
            or gray (H, W), uint8; or a tensor (C, H, W), uint8 or float in [0, 1]. Three channels are RGB.
        channels: C.
        tiled: read files of up to `LARGEST_IN_TILES` pixels instead of `LARGEST`; `PIL.Image.MAX_IMAGE_PIXELS` has to
            allow as many.

    Raises `UserError` naming what was given for anything else.
    """
    if isinstance(image, (str, os.PathLike)):
        return torch.from_numpy(read_file(os.fspath(image), channels, tiled)).permute(2, 0, 1)
    if isinstance(image, Image.Image):
        image = _of_pil(image, channels)
    if isinstance(image, np.ndarray):
        image = _of_array(image, channels)
    if not isinstance(image, Tensor):
        raise UserError(f"An image must be a path, a PIL image, an array or a tensor, not a {type(image).__name__}.")
    if image.ndim != 3 or len(image) != channels or 0 in image.shape:
        form, wanted = tuple(image.shape), f"({channels}, H, W)"
        raise UserError(f"A tensor of shape {form} is not an image; this network takes {wanted}.")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise UserError(f"An image of {image.dtype} has no known range; give uint8, or float in [0, 1].")
    low, high = (value.item() for value in image.aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # nor NaN
        raise UserError(
            f"The image has values from {low:g} to {high:g}, of {image.dtype}; give uint8, or float in [0, 1]."
        )
    return image.float()


def read_file(path: str, channels: int, tiled: bool, size: tuple[int, int] | None = None) -> np.ndarray:
    """`read_image` of a path or URL; errors name the way to read larger images."""
    try:
        return read_image(local_file(path, "image"), size, channels, LARGEST_IN_TILES if tiled else LARGEST)
    except TooLarge as error:
        larger = "" if tiled else f" In tiles (--tile 640), up to {LARGEST_IN_TILES} pixels are read."
        raise UserError(f"{error}{larger}") from error


def _of_pil(image: Image.Image, channels: int) -> np.ndarray:
    """The pixels; those of more than 8 bits are scaled like those of files."""
    name, modes = getattr(image, "filename", "") or "of PIL", {1: "L", 3: "RGB", 4: "RGBA"}
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            return to_bytes(np.array(image), name)
        return np.array(image.convert(modes[channels]) if channels in modes else image)
    except OSError as error:
        raise UserError(f"Image {name} cannot be decoded: {reason(error)}.") from error


def _of_array(array: np.ndarray, channels: int) -> Tensor:
    shape = array.shape
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3 if channels == 3 else 1, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels or not array.size:
        raise UserError(
            f"An array of shape {shape} and {array.dtype} is not an image; give (H, W, {channels}) of uint8"
            f"{', RGB' if channels == 3 else ''}."
        )
    if min(array.strides) < 0 or not array.flags.writeable:  # which torch does not take
        array = array.copy()
    return torch.from_numpy(array).permute(2, 0, 1)
