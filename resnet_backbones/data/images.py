"""Image files of every kind found in real datasets, as 8-bit RGB."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError, reason
from ..paths import read_whole
from .reading import with_retries

# Only formats of pixels: PIL's EPS reader, for one, starts Ghostscript. JPEG includes MPO, PPM includes PGM and PBM.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
LARGEST = 2**27  # pixels, 400 MB of RGB


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """`decode_image` of a file. Raises `UserError` if it is missing or cannot be read, too."""
    try:
        content = with_retries(lambda: read_whole(path))
    except FileNotFoundError as error:
        raise UserError(f"Image {path} does not exist.") from error
    except OSError as error:
        raise UserError(f"Image {path} cannot be read: {reason(error)}.") from error
    return decode_image(content, str(path), size)


def decode_image(content: bytes, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The bytes of an image file as RGB (H, W, 3), uint8. Gray, palette, RGBA (without alpha), CMYK and 16-bit work.

    Args:
        content: the bytes.
        name: what error messages call the image.
        size: the (width, height) that the annotations were made for. The EXIF orientation is applied, unless only
            the image as stored has that size.

    Raises `UserError` if it is not an image, or truncated, too large or of another size.
    """
    with _open(io.BytesIO(content), name) as image:
        if size is not None and sorted(size) != sorted(image.size):
            raise _wrong_size(name, image.size, size)
        try:
            upright = ImageOps.exif_transpose(image)
            if size is not None and upright.size != tuple(size):
                upright = image
            pixels = np.array(_to_rgb(upright))
        except Exception as error:  # PIL's decoders raise many kinds for damaged files
            raise UserError(f"Image {name} cannot be decoded: {reason(error)}.") from error
    if size is not None and pixels.shape[1::-1] != tuple(size):
        raise _wrong_size(name, pixels.shape[1::-1], size)
    return pixels


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, from its header. Raises `UserError` as `read_image` does."""
    if not path.is_file():  # opening a pipe would block
        raise UserError(f"Image {path} does not exist.")
    with _open(path, str(path)) as image:
        try:
            orientation = image.getexif().get(0x0112, 1)
            return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
        except Exception as error:
            raise UserError(f"Image {path} cannot be decoded: {reason(error)}.") from error


def _open(source: Path | io.BytesIO, name: str) -> Image.Image:
    """The image with its header read. Raises `UserError` calling it `name`."""
    try:
        image = Image.open(source, formats=FORMATS)
    except Exception as error:
        fault = "it is not an image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise UserError(f"Image {name} cannot be decoded: {fault}.") from error
    if image.width * image.height > LARGEST:
        image.close()
        raise UserError(
            f"Image {name} is {image.width} x {image.height} pixels, over the limit of {LARGEST}; cut it into tiles."
        )
    return image


def _wrong_size(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> UserError:
    return UserError(
        f"Image {name} is {found[0]} x {found[1]} pixels, but its annotation says {wanted[0]} x {wanted[1]}."
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # PIL would clip these to 255
        values = np.asarray(image)
        if image.mode.startswith("I") and values.max() > 255:  # 16 bits
            values = values >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
