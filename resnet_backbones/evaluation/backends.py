"""The libraries that match detections with objects for COCO's figures: faster-coco-eval, in C++, and pycocotools.

pycocotools is the reference. The other gives the same numbers to the last bit, or is not asked.
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

    "faster_coco_eval" leaves to pycocotools what it would score otherwise, and all where it is not installed. Neither
    argument is changed. Raises `UserError` for an unknown backend and for what pycocotools cannot score.
    """
    if backend not in BACKENDS:
        raise UserError(unknown("evaluation.backend", backend, BACKENDS))
    if backend == "faster_coco_eval" and is_plain(ground_truth, iou_type):
        try:
            return _by_faster_coco_eval(ground_truth, predictions, iou_type)
        except ImportError:
            logger.warning(
                "faster-coco-eval is not installed: pycocotools scores, several times slower; "
                "pip install faster-coco-eval, or set evaluation.backend=pycocotools"
            )
        except Exception as error:  # what pycocotools scores or names
            logger.debug("faster-coco-eval cannot score these predictions: %s", error)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(*_load(COCO, ground_truth, predictions, iou_type), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
    except Exception as error:  # pycocotools trips over what it is given in many ways, and names none of them
        raise UserError(f"pycocotools cannot score these {iou_type} predictions: {reason(error)}") from error
    return evaluation


def is_plain(ground_truth: dict, iou_type: str) -> bool:
    """Whether both libraries understand it alike.

    Ids are whole numbers that a double holds, none is there twice, and those of objects are positive (pycocotools takes
    an object of id 0 for none); `iscrowd` is 0 or 1; polygons have three corners (pycocotools takes two for a box).
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
    import faster_coco_eval  # here, because it may be missing

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
    """Precision as pycocotools has it, tp / (tp + fp + 2^-52), which is another number where tp + fp is 1.

    So a 1 is one bit less where the first detection is true and the second, if any, is not. It is none of these where
    two objects are found at precision 1, which a recall of more than 1 / n and at most 2 / n of n objects shows; among
    the `thresholds` is one power of 2 in that interval for every n > 1. `counts` (class, area) holds n.
    """
    power = np.floor(np.log2(np.maximum(counts - 1, 1)))  # the largest below n
    place = np.searchsorted(thresholds, 2.0**-power)
    second = np.take_along_axis(precision, place[None, None, :, :, None], axis=1)
    alone = (second != 1) | (counts < 2)[None, None, :, :, None]
    return np.where((precision == 1) & alone, 1 / (1 + np.spacing(1)), precision)


def _count_objects(ground_truth: dict, params) -> np.ndarray:
    """How many objects of each class are to be found in each range of areas."""
    objects = [o for o in ground_truth["annotations"] if not o["iscrowd"]]
    images, place = set(params.imgIds), {category_id: k for k, category_id in enumerate(params.catIds)}
    objects = [o for o in objects if o["image_id"] in images and o["category_id"] in place]
    classes = np.array([place[o["category_id"]] for o in objects], dtype=int)
    areas = np.array([o["area"] for o in objects], dtype=float)
    inside = [classes[(areas >= low) & (areas <= high)] for low, high in params.areaRng]
    return np.stack([np.bincount(c, minlength=len(place)) for c in inside], axis=1)


def _load(library: type, ground_truth: dict, predictions: list[dict], iou_type: str) -> tuple:
    """The two sides in `library`'s class COCO; of copies, since it adds keys to what it is given.

    The copies have what scoring reads. A key such as "caption" or "drop" would mean something of its own to one or the
    other, and without "segmentation" a polygon would be drawn of every predicted box.
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
