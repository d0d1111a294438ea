"""TIFF files of any type and number of channels, read by tifffile where Pillow has no mode for them without loss."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from ..errors import UserError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
ORIENTATION = 274  # tag
GRAY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
ALPHA = ([1], [2])  # of the extra samples


class TooLarge(UserError):
    """An image with more pixels than are read."""


class Samples(NamedTuple):
    """What a file stores, before anything is scaled or turned."""

    values: np.ndarray  # (H, W, C)
    alpha: bool  # whether the last channel is
    orientation: int = 1  # as in EXIF
    top: int | None = None  # the largest possible value, where the file states it
    nodata: float | None = None  # the value of pixels without data
    inverted: bool = False  # 0 is white


def is_tiff(content: bytes) -> bool:
    return content[:4] in SIGNATURES


def read_tiff(content: bytes, name: str, channels: int, most: int) -> Samples | None:
    """The first image of a TIFF, or None where Pillow reads it without loss.

    Pages along an axis that ImageJ or tifffile calls channels, or does not name, are one image if there are as many as
    `channels`. Raises `UserError`, which calls the file `name`, above `most` values; tifffile raises other errors.
    """
    with TiffFile(io.BytesIO(content)) as file:
        page, several = file.pages.first, channels > 1 and len(file.pages) > 1
        if page.photometric not in (*GRAY, PHOTOMETRIC.RGB) or (_is_plain(page) and not several):
            return None
        source = file.series[0] if several else page
        if several and not (len(source.axes) == 3 and source.axes[0] in "CQ" and channels in source.shape[::2]):
            if _is_plain(page):
                return None
            source = page
        if source.size > most:
            raise TooLarge(f"Image {name} has {source.size} values, over the limit of {most}; cut it into several.")
        values = _values(source, page, content)
        if values.ndim == 2:
            values = values[..., None]
        elif source.axes[0] == "S" or (source is not page and values.shape[0] == channels):
            values = np.moveaxis(values, 0, 2)
        return Samples(
            values,
            source is page and _has_alpha(page),
            page.tags.valueof(ORIENTATION, 1),
            2**page.bitspersample - 1 if 8 < page.bitspersample < 16 else None,
            page.nodata or None,
            page.photometric == PHOTOMETRIC.MINISWHITE,
        )


def tiff_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright first image of a TIFF, from its header."""
    with TiffFile(path) as file:
        page = file.pages.first
        size = page.imagewidth, page.imagelength
        return size[::-1] if page.tags.valueof(ORIENTATION, 1) in (5, 6, 7, 8) else size


def _is_plain(page: TiffPage) -> bool:
    """Whether it is gray or RGB of up to 8 bits, with or without alpha."""
    color = page.samplesperpixel - _has_alpha(page)
    return page.bitspersample <= 8 and page.sampleformat == 1 and color == (1 if page.photometric in GRAY else 3)


def _has_alpha(page: TiffPage) -> bool:
    extra = [int(e) for e in page.extrasamples]
    unsaid = page.photometric == PHOTOMETRIC.RGB and page.samplesperpixel == 4 and not extra
    return extra[-1:] in ALPHA or unsaid


def _values(source: object, page: TiffPage, content: bytes) -> np.ndarray:
    """The values of a page or series; for compressions that tifffile lacks, those that Pillow gives."""
    try:
        return source.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error) or source is not page:
            raise
        try:
            values = np.asarray(Image.open(io.BytesIO(content), formats=["TIFF"]))
        except Exception:  # it has no mode for the values
            raise error from None
    if values.dtype == np.uint8:  # the upper half of 16 bits
        return values.astype(np.uint16) << 8
    return values.view(page.dtype) if values.dtype.itemsize == page.dtype.itemsize else values
