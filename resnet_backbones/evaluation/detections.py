"""Detections in COCO's results format: written from a detector's output, and checked before they are scored."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import columns
from ..data.annotations import Annotations
from ..data.cleaning import MAX_COORDINATE, shown
from ..data.rle import CHARACTERS
from ..data.segmentations import pack_segmentations
from ..errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class Detections:
    """N detections of a dataset's images and classes, in columns."""

    image_index: np.ndarray  # (N,)
    labels: np.ndarray  # (N,), from 1
    scores: np.ndarray  # (N,)
    boxes: np.ndarray | None  # (N, 4), x, y, width, height in pixels; None with masks
    masks: list[dict] | None  # N RLEs; None with boxes


def read_detections(data: Annotations, predictions: object, iou_type: str) -> Detections:
    """`predictions`, {"image_id", "category_id", "score", "bbox" or for segm "segmentation"}, in columns.

    Those of classes that the ground truth does not have are left out, as in pycocotools. Raises `UserError` naming the
    first that lacks what `iou_type` needs or is of an image that the ground truth does not have.
    """
    if not isinstance(predictions, list):
        raise UserError(f"predictions must be a list of COCO results, not a {type(predictions).__name__}.")
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    try:
        image_ids, category_ids, scores, shapes = (
            [p[key] for p in predictions] for key in ("image_id", "category_id", "score", shape)
        )
    except (TypeError, KeyError, IndexError):
        raise UserError(_without_a_key(predictions, shape)) from None
    image_index = columns.positions(data.image_ids.tolist(), image_ids)
    scores = columns.numbers(scores)
    _refuse(predictions, image_index < 0, "is of an image that is not in the ground truth")
    _refuse(predictions, ~np.isfinite(scores), "has a score that is not a finite number")
    boxes = masks = None
    if iou_type == "bbox":
        boxes = columns.boxes(shapes)
        _refuse(predictions, ~(np.abs(boxes) < MAX_COORDINATE).all(1), "has a bbox that is not four finite numbers")
    else:
        check_sizes(data, image_index)
        masks = _checked_masks(predictions, shapes, data.sizes, image_index)
    labels = columns.positions([category["id"] for category in data.categories], category_ids) + 1
    if not labels.all():
        left = predictions[int(labels.argmin())]["category_id"]
        logger.warning(
            "%d of %d predictions are of categories that are not in the ground truth and are left out, such as %s",
            *((labels == 0).sum(), len(labels), shown(left)),
        )
        kept = np.flatnonzero(labels)
        image_index, labels, scores = image_index[kept], labels[kept], scores[kept]
        boxes = boxes if boxes is None else boxes[kept]
        masks = masks if masks is None else [masks[j] for j in kept.tolist()]
    return Detections(image_index, labels, scores, boxes, masks)


def check_sizes(data: Annotations, image_index: np.ndarray) -> None:
    """Raise `UserError` naming the first of these images whose width and height are not known, which masks need."""
    unknown = (data.sizes[image_index] == 0).any(1)
    if unknown.any():
        raise UserError(
            f"image {data.image_id(image_index[unknown.argmax()])} of the ground truth has no width and height, which "
            "masks need; give the folder of the images with --images."
        )


def _without_a_key(predictions: list, shape: str) -> str:
    needed = ("image_id", "category_id", "score", shape)
    for k, p in enumerate(predictions):
        if not isinstance(p, dict):
            return f"prediction {k} is {shown(p)}, not a mapping."
        lacking = next((key for key in needed if key not in p), None)
        if lacking is not None:
            return f"prediction {k} has no {lacking!r}; it has {', '.join(map(str, p)) or 'nothing'}."
    raise AssertionError("every prediction has what is needed")


def _refuse(predictions: list[dict], wrong: np.ndarray, fault: str) -> None:
    if wrong.any():
        k = int(wrong.argmax())
        raise UserError(f"prediction {k} {fault}: {shown(predictions[k])}.")


def _checked_masks(
    predictions: list[dict], shapes: list[Any], sizes: np.ndarray, image_index: np.ndarray
) -> list[dict]:
    """The masks as compressed RLEs of their images' sizes (I, 2), width and height."""
    try:
        counts, given = [s["counts"] for s in shapes], [s["size"] for s in shapes]
        text = "".join(counts).encode()
        ended = all(c and c[-1] < "P" for c in counts)  # ends with the last group of a number
        plain = ended and not text.translate(None, CHARACTERS)
        whole = set(map(type, itertools.chain.from_iterable(given))) <= {int}  # 64.0 equals 64, too
        wanted = sizes[:, ::-1].tolist()
        if plain and whole and given == [wanted[k] for k in image_index.tolist()]:
            return shapes
    except (TypeError, KeyError, IndexError):  # counts as lists or bytes, polygons, or something wrong
        pass
    sizes = sizes[image_index]
    packed, _ = pack_segmentations(shapes, sizes)
    _refuse(predictions, ~packed.present, "has a segmentation that is not a mask of its image's size")
    return [_rle(mask, *size) for mask, size in zip(packed.all_as_coco(sizes), sizes.tolist(), strict=True)]


def _rle(segmentation: list | dict, width: int, height: int) -> dict:
    """A segmentation as RLE."""
    if isinstance(segmentation, dict):
        return segmentation
    from ..data.masks import as_text, of_polygons  # slow to import, and results files have RLEs

    return as_text(of_polygons(segmentation, height, width))


def coco_results(
    detections: dict[str, np.ndarray | list], image_id: int | str, category_ids: Sequence[int | str]
) -> list[dict]:
    """One image's detections in COCO's results format.

    `detections` has `boxes` (M, 4), xyxy, `labels` (M,) from 1, `scores` (M,), and optionally `rles`, M encoded masks.
    """
    results = []
    for i, (x0, y0, x1, y1) in enumerate(detections["boxes"].tolist()):
        result = {
            "image_id": image_id,
            "category_id": category_ids[int(detections["labels"][i]) - 1],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(detections["scores"][i]),
        }
        if "rles" in detections:
            result["segmentation"] = detections["rles"][i]
        results.append(result)
    return results
