"""Image files of every kind that real data holds, as 8-bit RGB."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError, reason
from ..paths import read_whole
from .reading import with_retries

# Decoders that work on pixels alone; PIL has others, of which EPS's runs Ghostscript, that is, what the file says.
# JPEG includes MPO, PPM includes PGM and PBM.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
LARGEST = 2**27  # pixels, 400 MB of RGB


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as RGB (H, W, 3), uint8: grey, palette, RGBA (alpha dropped), CMYK and 16-bit included.

    Args:
        path: the file.
        size: the (width, height) that the annotations were made for. The EXIF orientation is applied, unless only
            the image as it is stored has that size.

    Raises `UserError` naming the file where it is missing, truncated, no image, too large or of another size. An image
    of another size is not decoded.
    """
    with _opened(io.BytesIO(_content(path)), str(path)) as image:
        if size is not None and sorted(size) != sorted(image.size):
            raise _other_size(path, image.size, size)
        try:
            upright = ImageOps.exif_transpose(image)
            if size is not None and upright.size != tuple(size):
                upright = image
            rgb = np.asarray(_to_rgb(upright))
        except Exception as error:  # whatever PIL's many decoders make of damaged files
            raise UserError(f"Image {path} cannot be decoded: {reason(error)}.") from error
    if size is not None and rgb.shape[1::-1] != tuple(size):
        raise _other_size(path, rgb.shape[1::-1], size)
    return rgb


def _content(path: Path) -> bytes:
    """A file's bytes, read again where the fault may pass. Raises `UserError` naming it."""
    try:
        return with_retries(lambda: read_whole(path))
    except FileNotFoundError as error:
        raise UserError(f"Image {path} does not exist.") from error
    except OSError as error:
        raise UserError(f"Image {path} cannot be read: {reason(error)}.") from error


def _other_size(path: Path, found: tuple[int, int], wanted: tuple[int, int]) -> UserError:
    return UserError(
        f"Image {path} is {found[0]} x {found[1]} pixels, but its annotation says {wanted[0]} x {wanted[1]}."
    )


def decode_image(content: bytes, name: str) -> Tensor:
    """The bytes of an image file as an upright RGB image (3, H, W), uint8. Raises `UserError` naming `name`."""
    try:
        with _opened(io.BytesIO(content), name) as image:
            return torch.from_numpy(np.array(_to_rgb(ImageOps.exif_transpose(image)))).permute(2, 0, 1)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"Image {name} cannot be decoded: {reason(error)}.") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, from its header. Raises `UserError` as `read_image`."""
    with _opened(path, str(path)) as image:
        try:
            orientation = image.getexif().get(0x0112, 1)
            return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
        except Exception as error:
            raise UserError(f"Image {path} cannot be decoded: {reason(error)}.") from error


def _opened(source: Path | io.BytesIO, name: str) -> Image.Image:
    """The image of a file or its bytes, not decoded yet. Raises `UserError` naming it as `name`."""
    try:
        if isinstance(source, Path) and not source.is_file():  # opening a pipe would wait for ever
            raise UserError(f"Image {name} does not exist.")
        image = Image.open(source, formats=FORMATS)
    except UserError:
        raise
    except Exception as error:
        fault = "it is no image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise UserError(f"Image {name} cannot be decoded: {fault}.") from error
    if image.width * image.height > LARGEST:
        image.close()
        raise UserError(
            f"Image {name} is {image.width} x {image.height} pixels, more than the {LARGEST} that are decoded; cut it "
            "into tiles."
        )
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # PIL would clip these to 255
        values = np.asarray(image)
        if image.mode.startswith("I") and values.max() > 255:  # 16 bits
            values = values >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
