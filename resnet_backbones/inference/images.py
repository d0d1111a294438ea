"""Images in the forms that people have them in, as tensors."""

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import LARGEST, read_image
from ..errors import UserError
from ..paths import local_file

LARGEST_IN_TILES = 2**29  # pixels, such as 20,000 x 20,000, whose decoding takes about 5 GB


def as_tensor(image: object, channels: int, tiled: bool = False) -> Tensor:
    """An image (C, H, W), uint8, or float in [0, 1] where such a tensor is given.

    Args:
        image: a path or URL, which is turned upright as its EXIF data says; a PIL image, as it is; an array (H, W, C)
            or gray (H, W), uint8; or a tensor (C, H, W), uint8 or float in [0, 1]. Three channels are RGB.
        channels: C.
        tiled: read files of up to `LARGEST_IN_TILES` pixels instead of `LARGEST`; `PIL.Image.MAX_IMAGE_PIXELS` has to
            allow as many.

    Raises `UserError` naming what was given for anything else.
    """
    if isinstance(image, (str, os.PathLike)):
        path, largest = local_file(os.fspath(image), "image"), LARGEST_IN_TILES if tiled else LARGEST
        return torch.from_numpy(read_image(path, channels=channels, largest=largest)).permute(2, 0, 1)
    if isinstance(image, Image.Image):
        modes = {1: "L", 3: "RGB", 4: "RGBA"}
        image = np.array(image.convert(modes[channels]) if channels in modes else image)
    if isinstance(image, np.ndarray):
        image = _of_array(image, channels)
    if not isinstance(image, Tensor):
        raise UserError(f"An image must be a path, a PIL image, an array or a tensor, not a {type(image).__name__}.")
    if image.ndim != 3 or len(image) != channels or 0 in image.shape:
        form, wanted = tuple(image.shape), f"({channels}, H, W)"
        raise UserError(f"A tensor of shape {form} is not an image; this network takes {wanted}.")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise UserError(f"An image of {image.dtype} has no known range; give uint8, or float in [0, 1].")
    return image


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
