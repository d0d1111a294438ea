"""Image files of every kind that real data holds, as 8-bit RGB."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError

# What PIL raises for files that are damaged or no images (`UnidentifiedImageError` is an OSError).
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as RGB (H, W, 3), uint8: grey, palette, RGBA (alpha dropped), CMYK and 16-bit included.

    Args:
        path: the file.
        size: the (width, height) that the annotations were made for. The EXIF orientation is applied, unless only
            the image as it is stored has that size.

    Raises `UserError` naming the file where it is missing, truncated, no image, or of another size.
    """
    with _opened(path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if size is not None and upright.size != size:
                upright = image
                image.load()
            rgb = np.asarray(_to_rgb(upright))
        except UNREADABLE as error:
            raise UserError(f"Image {path} cannot be decoded: {error}.") from error
    if size is not None and (rgb.shape[1], rgb.shape[0]) != tuple(size):
        raise UserError(
            f"Image {path} is {rgb.shape[1]} x {rgb.shape[0]} pixels, but its annotation says {size[0]} x {size[1]}."
        )
    return rgb


def decode_image(content: bytes, name: str) -> Tensor:
    """The bytes of an image file as an upright RGB image (3, H, W), uint8. Raises `UserError` naming `name`."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return torch.from_numpy(np.array(_to_rgb(ImageOps.exif_transpose(image)))).permute(2, 0, 1)
    except Exception as error:  # whatever PIL's many decoders make of damaged files
        fault = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"Image {name} cannot be decoded: {fault}.") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, from its header. Raises `UserError` as `read_image`."""
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 … 8 swap the sides
        return image.size[::-1] if turned else image.size


def _opened(path: Path) -> Image.Image:
    if not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"Image {path} does not exist.")
    try:
        return Image.open(path)
    except UNREADABLE as error:
        raise UserError(f"Image {path} cannot be read as an image: {error}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # PIL would clip these to 255
        values = np.asarray(image)
        if image.mode.startswith("I") and values.max() > 255:  # 16 bits
            values = values >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
