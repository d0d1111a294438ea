"""Samples of more than 8 bits, signed or floating-point, as bytes."""

import logging

import numpy as np

from ..errors import UserError

logger = logging.getLogger(__name__)

TOPS = (1, 2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)
FAINT = 16  # of 256 levels: too few to learn from
WARNED: set[tuple] = set()  # kinds of files that this process has warned about


def to_bytes(values: np.ndarray, name: str, top: int | None = None, nodata: float | None = None) -> np.ndarray:
    """`values` of any real type as uint8, scaled by one range for all channels: its bottom is black, its top white.

    The range is 0 … `top` if the file states it. Otherwise it is the first of 0 … 1, 255, 1023, 4095, 16383 and 65535
    that contains the largest value, if that is at least a sixteenth of its top. Values down to a sixteenth below zero
    become black, and floats up to a sixteenth above the top white. In all other cases the range is 0 … 2^k, or
    -2^k … 2^k with negative values, for the smallest k that fits.

    So only the order of magnitude of the largest value matters, which files of one kind usually share. In each process
    a warning names the first file of each kind whose range is neither stated nor that of its whole type (0 … 1 for
    floats), or that is left with hardly any contrast.

    Args:
        values: NaN, infinities and `nodata` become 0.
        name: what messages call the image.
        top: the largest value that the format allows.
        nodata: the value of pixels without data.

    Raises `UserError` for complex numbers, and if no value is finite.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise UserError(f"Image {name} has {values.dtype} values; convert it to real numbers.")
    valid = np.isfinite(values) if nodata is None else np.isfinite(values) & (values != nodata)
    found, integer = values[valid], values.dtype.kind != "f"
    if not found.size:
        raise UserError(f"Image {name} has no finite value.")
    low, high = float(found.min()), float(found.max())
    black, white = value_range(low, high, integer) if top is None else (0, top)
    # Integers keep their upper bits; for floats, k / 255 becomes k.
    scale, offset = (256 / (white + 1 - black), 0) if integer else (255 / (white - black), 0.5)
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    scaled = (found.astype(exact) - black) * scale + offset
    pixels = np.zeros(values.shape, np.uint8)
    pixels[valid] = scaled.clip(0, 255)

    faint = low < high and _levels(pixels[valid]) < FAINT
    natural = (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max) if integer else (0, 1)
    if faint or (top is None and (black, white) != natural):
        kind = (values.dtype, black, white, faint)
        read = f"{values.dtype} values from {low:g} to {high:g}, read with black at {black:g} and white at {white:g}"
        _warn_once(kind, f"Image {name} has {read}{', which leaves hardly any contrast' if faint else ', a guess'}.")
    return pixels


def value_range(low: float, high: float, integer: bool) -> tuple[float, float]:
    """Bottom and top of the range for values from `low` to `high`, as described in `to_bytes`."""
    if low == high == 0:
        return 0, 1
    top = next((top for top in TOPS if high <= (top if integer else top * 17 / 16)), np.inf)
    if top / 16 <= high and low >= -top / 16:
        return 0, top
    power = 2.0 ** np.ceil(np.log2(max(-low, high + integer)))
    return (-power if low < 0 else 0), power - integer


def _levels(pixels: np.ndarray) -> int:
    """How many gray levels the pixels span, without the darkest and the brightest thousandth."""
    share = np.cumsum(np.bincount(pixels.ravel(), minlength=256)) / pixels.size
    return np.searchsorted(share, 0.999) - np.searchsorted(share, 0.001)


def _warn_once(kind: tuple, message: str) -> None:
    if kind not in WARNED:
        WARNED.add(kind)
        logger.warning("%s To choose another range, convert such images to 8 bits.", message)
