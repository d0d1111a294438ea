"""COCO's detection metrics, equal to those of pycocotools, the reference implementation, to the last digit."""

import contextlib
import io

import numpy as np

from ..data.annotations import MAX_COORDINATE, MAX_SIDE, check_classes
from ..data.masks import are_coordinates, check_rle
from ..errors import UserError, unknown
from .backends import accumulate

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOU_TYPES = ("bbox", "segm")
MAX_ID = 2**63  # what numpy's integers hold


def coco_metrics(
    ground_truth: dict, predictions: list[dict], iou_type: str, backend: str = "faster_coco_eval"
) -> dict[str, float]:
    """COCO's 12 metrics and per-class AP in percent; -1 if there are no objects to find, as in pycocotools.

    Args:
        ground_truth: the content of a COCO instances file.
        predictions: COCO's results format, {"image_id", "category_id", "score", "bbox": [x, y, w, h] and for segm
            "segmentation": RLE}.
        iou_type: "bbox" or "segm", the prefix of the metrics: "bbox/AP", … "bbox/AP-person".
        backend: "faster_coco_eval" or "pycocotools"; the metrics are the same.

    Raises `UserError` if ground truth or predictions lack a key that `iou_type` needs, or images are unknown.
    """
    metrics, _ = evaluate_coco(ground_truth, predictions, iou_type, backend)
    return metrics


def evaluate_coco(
    ground_truth: dict, predictions: list[dict], iou_type: str, backend: str = "faster_coco_eval"
) -> tuple[dict[str, float], str]:
    """`coco_metrics`, and the twelve lines that pycocotools prints."""
    check_ground_truth(ground_truth, iou_type)
    check_predictions(ground_truth, predictions, iou_type)
    return score_checked(ground_truth, predictions, iou_type, backend)


def score_checked(
    ground_truth: dict, predictions: list[dict], iou_type: str, backend: str
) -> tuple[dict[str, float], str]:
    """`evaluate_coco` of what has passed `check_ground_truth` and `check_predictions`."""
    evaluation = accumulate(ground_truth, predictions, iou_type, backend)
    with contextlib.redirect_stdout(io.StringIO()) as summary:
        evaluation.summarize()
    metrics = {f"{iou_type}/{name}": _percent(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all areas, 100 detections
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    for k, category_id in enumerate(evaluation.params.catIds):
        found = precision[:, :, k][precision[:, :, k] > -1]
        metrics[f"{iou_type}/AP-{names[category_id]}"] = _percent(found.mean() if found.size else -1.0)
    return metrics, summary.getvalue()


def check_ground_truth(ground_truth: dict, iou_type: str) -> None:
    """Raise `UserError` naming the first entry that pycocotools cannot score."""
    needed = {"images": ["id"], "categories": ["id", "name"], "annotations": ["id", "image_id", "category_id"]}
    needed["annotations"] += ["bbox", "area", "iscrowd"] if iou_type == "bbox" else ["segmentation", "area", "iscrowd"]
    for kind, keys in needed.items():
        if not isinstance(ground_truth, dict) or not isinstance(ground_truth.get(kind), list):
            raise UserError(f"The ground truth has no list {kind!r}; is it a COCO instances file?")
        for entry in ground_truth[kind]:
            for key in keys:
                if not isinstance(entry, dict) or key not in entry or not _usable(key, entry[key]):
                    raise UserError(f"The ground truth's {kind} have an entry without {key!r}: {shown(entry)}.")
    check_classes([category["name"] for category in ground_truth["categories"]], "The ground truth")
    if iou_type == "segm":
        _check_image_sizes(ground_truth)


def _usable(key: str, value: object) -> bool:
    if key == "bbox":
        return isinstance(value, list) and len(value) == 4 and are_coordinates(value, MAX_COORDINATE)
    if key == "segmentation":
        return _is_segmentation(value)
    if key == "name":
        return isinstance(value, str)
    if key in ("id", "image_id", "category_id"):
        return _is_whole(value) and abs(value) < MAX_ID
    return isinstance(value, (int, float)) and abs(value) < 1e300  # False for NaN


def shown(entry: object) -> str:
    """The beginning of an entry, for messages."""
    try:
        return str(entry)[:80]
    except ValueError:
        return f"a {type(entry).__name__} with an integer of thousands of digits"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _is_segmentation(value: object) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(isinstance(p, list) and len(p) >= 4 and are_coordinates(p) for p in value)
    try:
        check_rle(value if isinstance(value, dict) else {})
    except ValueError:
        return False
    return True


def _check_image_sizes(ground_truth: dict) -> None:
    """Raise `UserError` naming an image with polygons but without a proper width and height."""
    with_polygons = {o["image_id"] for o in ground_truth["annotations"] if isinstance(o["segmentation"], list)}
    for image in ground_truth["images"]:
        sides = image.get("width"), image.get("height")
        proper = all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in sides)
        if image["id"] in with_polygons and not proper:
            raise UserError(
                f"The ground truth's image {image['id']} is {str(sides[0])[:40]} x {str(sides[1])[:40]} pixels, "
                "a size that polygons cannot be scored for."
            )


def check_predictions(ground_truth: dict, predictions: list[dict], iou_type: str) -> None:
    """Raise `UserError` naming the first prediction that cannot be scored."""
    if iou_type not in IOU_TYPES:
        raise UserError(unknown("iou type", iou_type, IOU_TYPES))
    if not isinstance(predictions, list):
        raise UserError("Predictions must be a list of COCO results.")
    images = {image["id"] for image in ground_truth["images"]}
    needed = ("image_id", "category_id", "score", "bbox" if iou_type == "bbox" else "segmentation")
    for k, prediction in enumerate(predictions):
        for key in needed:
            if not isinstance(prediction, dict) or key not in prediction or not _usable(key, prediction[key]):
                raise UserError(f"Prediction {k} has no {key!r}, which {iou_type} needs: {shown(prediction)}.")
        if prediction["image_id"] not in images:
            raise UserError(f"Prediction {k} is of image {prediction['image_id']}, which is not in the ground truth.")


def _percent(value: float) -> float:
    return float(value) * 100 if value > -1 else -1.0


def coco_results(detections: dict[str, np.ndarray | list], image_id: int, category_ids: list[int]) -> list[dict]:
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
