"""The libraries that compute COCO's metrics: faster-coco-eval, in C++, and pycocotools, the reference.

faster-coco-eval is used where it gives the same numbers to the last bit.
"""

import contextlib
import io
import logging

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import UserError, reason, unknown

logger = logging.getLogger(__name__)

BACKENDS = ("faster_coco_eval", "pycocotools")


def accumulate(ground_truth: dict, predictions: list[dict], iou_type: str, backend: str) -> COCOeval:
    """pycocotools' `COCOeval` after `accumulate()`: `eval["precision"]` (IoU, recall, class, area, detections) …

    With "faster_coco_eval", pycocotools still scores data that both understand differently, and everything if
    faster-coco-eval is not installed. Raises `UserError` for an unknown backend and for what pycocotools cannot score.
    """
    if backend not in BACKENDS:
        raise UserError(unknown("evaluation.backend", backend, BACKENDS))
    if backend == "faster_coco_eval" and is_plain(ground_truth, iou_type):
        try:
            return _by_faster_coco_eval(ground_truth, predictions, iou_type)
        except ImportError:
            logger.warning(
                "faster-coco-eval is not installed, so pycocotools is used, which is several times slower: "
                "pip install faster-coco-eval, or set evaluation.backend=pycocotools"
            )
        except Exception as error:  # pycocotools scores them, or says what is wrong
            logger.debug("faster-coco-eval cannot score these predictions: %s", error)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(*_load(COCO, ground_truth, predictions, iou_type), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
    except Exception as error:  # pycocotools raises many kinds
        raise UserError(f"pycocotools cannot score these {iou_type} predictions: {reason(error)}") from error
    return evaluation


def is_plain(ground_truth: dict, iou_type: str) -> bool:
    """Whether both libraries understand it in the same way.

    Ids are integers that fit a double and are unique, those of objects are positive (pycocotools takes an object of id
    0 for no match), `iscrowd` is 0 or 1, and polygons have three corners (pycocotools takes two for a box).
    """
    objects = ground_truth["annotations"]
    for entries in (ground_truth["images"], ground_truth["categories"], objects):
        ids = {entry["id"] for entry in entries if type(entry["id"]) is int and abs(entry["id"]) < 2**53}
        if len(ids) < len(entries):
            return False
    return len(ground_truth["categories"]) > 0 and all(
        o["id"] > 0
        and type(o["image_id"]) is type(o["category_id"]) is int
        and o["iscrowd"] in (0, 1)
        and (iou_type == "bbox" or isinstance(o["segmentation"], dict) or min(map(len, o["segmentation"])) >= 6)
        for o in objects
    )


def _by_faster_coco_eval(ground_truth: dict, predictions: list[dict], iou_type: str) -> COCOeval:
    import faster_coco_eval  # may not be installed

    truth, found = _load(faster_coco_eval.COCO, ground_truth, predictions, iou_type)
    fast = faster_coco_eval.COCOeval_faster(truth, found, iou_type, print_function=logger.debug)
    evaluation = COCOeval(iouType=iou_type)
    thresholds = evaluation.params.recThrs
    fast.params.recThrs = np.union1d(thresholds, 2.0 ** -np.arange(len(ground_truth["annotations"]).bit_length() + 1))
    fast.evaluate()
    fast.accumulate()
    precision = _with_spacing(fast.eval["precision"], fast.params.recThrs, _count_objects(ground_truth, fast.params))
    precision = precision[:, np.searchsorted(fast.params.recThrs, thresholds)]
    evaluation.params.imgIds, evaluation.params.catIds = fast.params.imgIds, fast.params.catIds
    evaluation.eval = {"params": evaluation.params, "precision": precision, "recall": fast.eval["recall"]}
    return evaluation


def _with_spacing(precision: np.ndarray, thresholds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Precision as pycocotools computes it, tp / (tp + fp + 2^-52), which differs only for tp + fp = 1.

    A precision of 1 is one bit less if it comes from the first detection alone: that one is true and the second, if
    any, is false. It does not if two objects are found at precision 1, that is, at a recall of more than 1 / n and at
    most 2 / n of n objects. For every n > 1, one power of 2 among the `thresholds` lies in that interval. `counts`
    (class, area) holds n.
    """
    power = np.floor(np.log2(np.maximum(counts - 1, 1)))  # the largest below n
    index = np.searchsorted(thresholds, 2.0**-power)
    second = np.take_along_axis(precision, index[None, None, :, :, None], axis=1)
    alone = (second != 1) | (counts < 2)[None, None, :, :, None]
    return np.where((precision == 1) & alone, 1 / (1 + np.spacing(1)), precision)


def _count_objects(ground_truth: dict, params) -> np.ndarray:
    """(class, area): the number of objects to find of each class and in each range of areas."""
    objects = [o for o in ground_truth["annotations"] if not o["iscrowd"]]
    images, index = set(params.imgIds), {category_id: k for k, category_id in enumerate(params.catIds)}
    objects = [o for o in objects if o["image_id"] in images and o["category_id"] in index]
    classes = np.array([index[o["category_id"]] for o in objects], dtype=int)
    areas = np.array([o["area"] for o in objects], dtype=float)
    inside = [classes[(areas >= low) & (areas <= high)] for low, high in params.areaRng]
    return np.stack([np.bincount(c, minlength=len(index)) for c in inside], axis=1)


def _load(library: type, ground_truth: dict, predictions: list[dict], iou_type: str) -> tuple:
    """Ground truth and predictions as `library.COCO`.

    They are copies, since it adds keys to its input, with only the keys that scoring reads: "caption" or "drop" have a
    special meaning to one or the other. The "segmentation" of None keeps it from making a polygon of each box.
    """
    truth, found = library(), library()
    keys = ("id", "image_id", "category_id", "bbox", "segmentation", "score", "area", "iscrowd")
    truth.dataset = ground_truth | {"annotations": [_only(keys, o) for o in ground_truth["annotations"]]}
    truth.createIndex()
    if not predictions:
        found.dataset = {key: ground_truth[key] for key in ("images", "categories")} | {"annotations": []}
        found.createIndex()
    elif iou_type == "bbox":
        keys = ("image_id", "category_id", "bbox", "score")
        found = truth.loadRes([_only(keys, p) | {"segmentation": None} for p in predictions])
    else:
        found = truth.loadRes([_only(keys, p) for p in predictions])
    return truth, found


def _only(keys: tuple[str, ...], entry: dict) -> dict:
    return {key: entry[key] for key in keys if key in entry}
