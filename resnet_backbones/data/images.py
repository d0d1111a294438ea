"""Image files of every kind found in real datasets, as 8-bit images with as many channels as a network takes."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError, reason
from ..paths import read_whole
from .bit_depth import to_bytes
from .reading import with_retries
from .tiff import Samples, TooLarge, is_tiff, read_tiff, tiff_size

# Pixel formats only: PIL's EPS reader, for one, starts Ghostscript. JPEG includes MPO, PPM includes PGM and PBM.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
LARGEST = 2**27  # pixels, 400 MB of RGB
ORIENTATION = 0x0112  # EXIF tag


def read_image(
    path: Path, size: tuple[int, int] | None = None, channels: int = 3, largest: int = LARGEST
) -> np.ndarray:
    """`decode_image` of a file. Also raises `UserError` if it is missing or cannot be read."""
    try:
        content = with_retries(lambda: read_whole(path))
    except FileNotFoundError as error:
        raise UserError(f"Image {path} does not exist.") from error
    except OSError as error:
        raise UserError(f"Image {path} cannot be read: {reason(error)}.") from error
    return decode_image(content, str(path), size, channels, largest)


def decode_image(
    content: bytes, name: str, size: tuple[int, int] | None = None, channels: int = 3, largest: int = LARGEST
) -> np.ndarray:
    """The bytes of an image file as (H, W, channels), uint8; most formats plane by plane in memory.

    Three channels are RGB; four are RGBA or those of a TIFF; other numbers are also those of a TIFF. Gray becomes RGB
    for 3 channels, color becomes gray for 1, and alpha is left out if it is one channel too many. Palettes and CMYK
    become RGB. `to_bytes` says how values beyond 8 bits are scaled.

    Args:
        content: the bytes.
        name: what messages call the image.
        size: the (width, height) that the annotations were made for. The EXIF orientation is applied, unless only
            the image as stored has that size.
        channels: what the network takes.
        largest: the maximum number of pixels.

    Raises `UserError` if it is not an image, or truncated, too large, or of another size or number of channels.
    """
    try:
        pixels, alpha = _decode(content, name, size, channels, largest)
    except UserError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise UserError(f"Image {name} cannot be decoded: {reason(error)}.") from error
    if size is not None and pixels.shape[1::-1] != tuple(size):
        raise wrong_size(name, pixels.shape[1::-1], size)
    return _with_channels(pixels, alpha, channels, name)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, from its header. Raises `UserError` as `read_image` does."""
    if not path.is_file():  # opening a pipe would block
        raise UserError(f"Image {path} does not exist.")
    try:
        with open(path, "rb") as file:
            if is_tiff(file.read(4)):
                return tiff_size(path)
        with _open(path, str(path)) as image:
            return image.size[::-1] if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else image.size
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"Image {path} cannot be decoded: {reason(error)}.") from error


def _open(source: Path | io.BytesIO, name: str, largest: int = LARGEST) -> Image.Image:
    """The image with its header read. Raises `UserError` calling it `name`."""
    try:
        image = Image.open(source, formats=FORMATS)
    except Exception as error:
        fault = "it is not an image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise UserError(f"Image {name} cannot be decoded: {fault}.") from error
    if image.width * image.height > largest:
        image.close()
        raise TooLarge(
            f"Image {name} is {image.width} x {image.height} pixels, over the limit of {largest}; cut it into several."
        )
    return image


def _decode(
    content: bytes, name: str, size: tuple[int, int] | None, channels: int, largest: int
) -> tuple[np.ndarray, bool]:
    """The pixels (H, W, C) of the file's own channels, uint8, and whether the last channel is alpha."""
    samples = read_tiff(content, name, channels, 3 * largest) if is_tiff(content) else None
    if samples is None:
        with _open(io.BytesIO(content), name, largest) as image:
            if size is not None and sorted(size) != sorted(image.size):
                raise wrong_size(name, image.size, size)
            samples = _pillow_samples(image)
            if image.format == "PNG" and content[24] == 16 and samples.values.dtype == np.uint8:
                # Pillow gives the upper 8 of 16 bits of color; as 16 bits, their range is found like that of others.
                samples = samples._replace(values=samples.values.astype(np.uint16) * 257)
    pixels = samples.values
    if pixels.dtype != np.uint8:
        parts = np.split(pixels, [-1], axis=2) if samples.alpha else [pixels]  # alpha has a range of its own
        pixels = np.dstack([to_bytes(part, name, samples.top, samples.nodata) for part in parts])
    if samples.inverted:
        pixels = 255 - pixels
    return _upright(pixels, samples.orientation, size), samples.alpha


def _pillow_samples(image: Image.Image) -> Samples:
    image.load()  # which also turns a TIFF upright
    if image.mode not in ("L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
        mode = {"1": "L", "La": "LA"}.get(image.mode, "RGBA" if image.has_transparency_data else "RGB")
        image = image.convert(mode)
    # Plane by plane, as networks take them: much faster than turning whole pixels into planes later.
    values = np.stack([np.asarray(band) for band in image.split()]).transpose(1, 2, 0)
    return Samples(values, image.mode in ("LA", "RGBA"), image.getexif().get(ORIENTATION, 1))


def _upright(pixels: np.ndarray, orientation: int, size: tuple[int, int] | None) -> np.ndarray:
    """`pixels` turned by the EXIF orientation, unless there is none or only the stored pixels have that `size`."""
    if not 2 <= orientation <= 8:
        return pixels
    turned, flips = (pixels.swapaxes(0, 1), orientation - 4) if orientation > 4 else (pixels, orientation)
    if flips in (2, 3):
        turned = turned[:, ::-1]
    if flips in (3, 4):
        turned = turned[::-1]
    if size is not None and turned.shape[1::-1] != tuple(size):
        return pixels
    return np.ascontiguousarray(turned)


def _with_channels(pixels: np.ndarray, alpha: bool, channels: int, name: str) -> np.ndarray:
    """`pixels` (H, W, C) with the `channels` of the network. Raises `UserError` naming both numbers if C is another."""
    count = pixels.shape[2]
    if count == channels:
        return pixels
    color = pixels[..., :-1] if alpha else pixels
    if color.shape[2] == channels:
        return color
    if (color.shape[2], channels) == (1, 3):
        return np.stack([color[..., 0]] * 3).transpose(1, 2, 0)
    if (color.shape[2], channels) == (3, 1):
        return np.array(Image.fromarray(np.ascontiguousarray(color)).convert("L"))[..., None]
    raise UserError(
        f"Image {name} has {count} channel{'s' if count > 1 else ''}, but the network takes {channels}; set "
        "backbone.in_channels, or convert the image."
    )


def wrong_size(name: str | Path, found: tuple[int, int], wanted: tuple[int, int]) -> UserError:
    """The error for an image whose width and height are not those annotated."""
    return UserError(
        f"Image {name} is {found[0]} x {found[1]} pixels, but its annotation says {wanted[0]} x {wanted[1]}."
    )
