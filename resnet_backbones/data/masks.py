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
    encoded = segmentation
    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    mask = rle.decode(encoded)
    return mask if mask.any() else None
