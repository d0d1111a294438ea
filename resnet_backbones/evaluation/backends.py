"""The libraries that compute COCO's metrics, identical to the last bit: hotcoco, in Rust, and pycocotools."""

import contextlib
import io
from typing import NamedTuple

import hotcoco
import numpy as np

from ..data.annotations import Annotations
from ..data.rle import fill_exactly
from ..errors import UserError, reason, unknown
from .detections import Detections, check_sizes

BACKENDS = ("hotcoco", "pycocotools")


class Scores(NamedTuple):
    """COCO's 12 metrics, and the arrays behind them with -1 where there is nothing to find."""

    stats: np.ndarray  # (12,)
    precision: np.ndarray  # (IoU, recall, class, area, number of detections)
    recall: np.ndarray  # (IoU, class, area, number of detections)


def score_detections(data: Annotations, found: Detections, iou_type: str, backend: str) -> Scores:
    """The scores of `found`. Classes are in the order of `data.categories`.

    Raises `UserError` for an unknown backend, and for masks on images of an unknown size.
    """
    if backend not in BACKENDS:
        raise UserError(unknown("evaluation.backend", backend, BACKENDS))
    return {"hotcoco": _hotcoco, "pycocotools": _pycocotools}[backend](data, found, iou_type)


def _hotcoco(data: Annotations, found: Detections, iou_type: str) -> Scores:
    evaluation = hotcoco_evaluation(data, found, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    arrays = evaluation.eval
    return Scores(np.asarray(evaluation.stats), arrays["precision"], arrays["recall"])


def hotcoco_evaluation(data: Annotations, found: Detections, iou_type: str) -> hotcoco.COCOeval:
    """`found`, matched and accumulated. Ids of detections and objects are their places in `found` and
    `scored_objects`, from 1; those of classes are their labels.

    Raises `UserError` for masks on images of an unknown size.
    """
    kept, ids, images, categories = _records(data, iou_type)
    truth = hotcoco.COCO.from_arrays(
        images,
        categories,
        ids[data.image_index[kept]],
        data.labels[kept],
        data.boxes[kept],
        area=data.areas[kept],
        iscrowd=data.crowds[kept],
        segmentation=None if iou_type == "bbox" else [s for s in data.all_segmentations() if s is not None],
    )
    if iou_type == "bbox":
        columns = ids[found.image_index], found.boxes, found.scores, found.labels
        results = truth.load_res(np.column_stack(columns).astype(np.float64))
    else:
        results = truth.load_res(_rows(found, ids, "segmentation", found.masks))
    evaluation = hotcoco.COCOeval(truth, results, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _pycocotools(data: Annotations, found: Detections, iou_type: str) -> Scores:
    from pycocotools.coco import COCO  # slow to import
    from pycocotools.cocoeval import COCOeval

    kept, ids, images, categories = _records(data, iou_type)
    truth, results = COCO(), COCO()
    own_ids = [{"image_id": int(ids[data.image_index[j]]), "category_id": int(data.labels[j])} for j in kept]
    objects = [data.object(j) | ids for j, ids in zip(kept, own_ids, strict=True)]
    truth.dataset = {"images": images, "categories": categories, "annotations": objects}
    results.dataset = truth.dataset | {"annotations": []}
    if iou_type == "bbox":  # a segmentation of None keeps it from making a polygon of each box
        rows = [row | {"segmentation": None} for row in _rows(found, ids, "bbox", found.boxes.tolist())]
    else:
        _check_runs(data, found)
        rows = _rows(found, ids, "segmentation", found.masks)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
            results.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(rows) if rows else results, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    except Exception as error:  # it raises many kinds of errors
        raise UserError(f"pycocotools cannot score these {iou_type} predictions: {reason(error)}") from error
    return Scores(np.asarray(evaluation.stats), evaluation.eval["precision"], evaluation.eval["recall"])


def scored_objects(data: Annotations, iou_type: str) -> np.ndarray:
    """The indices of the objects that are scored: all, or for masks those that have one."""
    return np.arange(len(data.labels)) if iou_type == "bbox" else np.flatnonzero(data.segmentations.present)


def _records(data: Annotations, iou_type: str) -> tuple[np.ndarray, np.ndarray, list[dict], list[dict]]:
    """The objects to score, new ids of all images, and images and categories as COCO writes them."""
    kept = scored_objects(data, iou_type)
    if iou_type == "segm":
        check_sizes(data, data.image_index[kept])
    ids = ranks(data.image_ids.tolist())  # among equal scores, the smaller image id comes first
    images = [
        {"id": k, "file_name": "", "width": width, "height": height}
        for k, (width, height) in zip(ids.tolist(), data.sizes.tolist(), strict=True)
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(data.classes, 1)]
    return kept, ids, images, categories


def ranks(ids: list) -> np.ndarray:
    """(N,), from 1: the rank of each id, numbers before text."""
    ranks = np.zeros(len(ids), np.int64)
    ranks[sorted(range(len(ids)), key=lambda k: (isinstance(ids[k], str), ids[k]))] = np.arange(1, len(ids) + 1)
    return ranks


def _rows(found: Detections, ids: np.ndarray, shape: str, shapes: list) -> list[dict]:
    """COCO's results format. Masks come without boxes, so that both libraries use the masks' areas."""
    columns = ids[found.image_index].tolist(), found.labels.tolist(), found.scores.tolist(), shapes
    return [
        {"image_id": image, "category_id": label, "score": score, shape: value}
        for image, label, score, value in zip(*columns, strict=True)
    ]


def _check_runs(data: Annotations, found: Detections) -> None:
    """Raise `UserError` for a mask past whose end pycocotools, unlike hotcoco, would read."""
    fits = fill_exactly([mask["counts"].encode() for mask in found.masks], data.sizes[found.image_index].prod(1))
    if not fits.all():
        raise UserError(f"prediction {int(fits.argmin())} has a mask whose runs do not fill its image.")
