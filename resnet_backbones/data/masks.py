"""COCO's segmentations, polygons and RLE, checked before pycocotools sees them: it reads past the end of wrong ones."""

import numpy as np
from pycocotools import mask as rle

FARTHEST = 1e6  # pixels; pycocotools takes memory for each pixel along a polygon, and no image has more on a side


def decode_mask(o: dict, height: int, width: int) -> np.ndarray | None:
    """The mask (height, width), uint8, of an annotation's polygons or RLE; None if it has none or an empty one.

    Raises `ValueError` if the segmentation does not fit the image.
    """
    segmentation = o.get("segmentation")
    if isinstance(segmentation, dict):
        check_rle(segmentation)
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its RLE has the size {segmentation['size']}, the image {[height, width]}")
        if isinstance(segmentation["counts"], list):
            segmentation = rle.frPyObjects(segmentation, height, width)
        mask = rle.decode(segmentation)
    else:
        polygons = [p for p in segmentation if is_polygon(p)] if isinstance(segmentation, list) else []
        if not polygons:
            return None
        mask = rle.decode(rle.merge(rle.frPyObjects(polygons, height, width)))
    return mask if mask.any() else None


def is_polygon(points: object) -> bool:
    """Whether `points` is [x, y, x, y …] with three corners or more; pycocotools would take four numbers for a box."""
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0 and are_coordinates(points)


def are_coordinates(values: list, farthest: float = FARTHEST) -> bool:
    """Whether all are numbers, finite and less than `farthest` from 0."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # lists among them
        return False
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        return False
    return bool((np.abs(array.astype(float)) < farthest).all())


def check_rle(segmentation: dict) -> None:
    """Raise `ValueError` unless the runs of an RLE, a list or a compressed string, fill its size exactly."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(isinstance(v, int) and v > 0 for v in size):
        raise ValueError(f"its RLE has size {str(size)[:80]}, not [height, width]")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not counts or not isinstance(counts, (list, str)):
        raise ValueError("its RLE has no counts")
    counts = rle_counts(counts) if isinstance(counts, str) else counts
    if not all(isinstance(v, int) and v >= 0 for v in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"its RLE counts do not sum to {size[0]} x {size[1]}")


def rle_counts(text: str) -> list[int]:
    """The run lengths of COCO's compressed RLE.

    Each number is written in 5-bit groups, lowest first, as characters from "0" on, where the sixth bit means that more
    follow. From the third on, it is the difference to the number two before. Raises `ValueError` for anything else.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError(f"its RLE has the invalid character {character!r}")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its RLE is cut short")
    return counts
