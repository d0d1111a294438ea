"""Instance masks from COCO's polygons and RLE."""

import numpy as np
from pycocotools import mask as rle


def decode_mask(segmentation: list | dict | None, height: int, width: int) -> np.ndarray | None:
    """The mask (height, width), uint8, of a checked segmentation; None if there is none or it is empty.

    Args:
        segmentation: polygons, or an RLE of the image's size, as `Annotations.object` gives them.
    """
    if segmentation is None:
        return None
    encoded = segmentation if isinstance(segmentation, dict) else of_polygons(segmentation, height, width)
    mask = rle.decode(encoded)
    return mask if mask.any() else None


def of_polygons(polygons: list[list[float]], height: int, width: int) -> dict:
    """The RLE, as pycocotools has it, of all pixels in any of the polygons."""
    return rle.merge(rle.frPyObjects(polygons, height, width))


def as_text(encoded: dict) -> dict:
    """An RLE of pycocotools, whose counts are bytes, made JSON-serializable."""
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode()}
