"""Masks as COCO's RLE without ever holding one of the whole image: 100 of a large image would take gigabytes."""

import numpy as np
from pycocotools import mask as rle
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

from ..data.masks import as_text


def paste(crops: Tensor, boxes: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> list[dict]:
    """The masks of a mask head as M RLEs, the same as those of torchvision's pasting, cut at 0.5.

    Args:
        crops: (M, 1, S, S), probabilities in the boxes.
        boxes: (M, 4), absolute xyxy within a tile.
        corner: x and y of that tile in the image.
        size: height and width of the image.
    """
    crops, scale = expand_masks(crops.float().cpu(), padding=1)
    boxes = expand_boxes(boxes.float().cpu(), scale).long() + boxes.new_tensor(corner * 2).long().cpu()
    results = []
    for crop, box in zip(crops[:, 0], boxes, strict=True):
        x0, y0, x1, y1 = box.tolist()
        left, top = max(x0, 0), max(y0, 0)
        width, height = max(min(x1 + 1, size[1]) - left, 0), max(min(y1 + 1, size[0]) - top, 0)
        pasted = paste_mask_in_image(crop, box - box.new_tensor([left, top, left, top]), height, width)
        results.append(encode(pasted.numpy() >= 0.5, (left, top), size))
    return results


def encode(region: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict:
    """The RLE of a mask of `size`, height and width, that is `region` (h, w), bool, at `corner` (x, y), else 0."""
    columns, rows = np.nonzero(region.T)  # COCO's order is down the columns
    places = (columns + corner[0]) * size[0] + rows + corner[1]
    starts = places[np.diff(places, prepend=-2) > 1]
    ends = places[np.diff(places, append=size[0] * size[1] + 1) > 1] + 1
    borders = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(borders, prepend=0, append=size[0] * size[1]).tolist()
    if len(counts) > 1 and counts[-1] == 0:  # COCO leaves it out
        del counts[-1]
    return as_text(rle.frPyObjects({"size": list(size), "counts": counts}, *size))


def union(rles: list[dict]) -> dict:
    """The RLE of all pixels that any of `rles` has."""
    return as_text(rle.merge(rles))
