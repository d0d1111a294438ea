"""The reports: of detections, of a classifier's answers, and of data."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..data.annotations import Annotations
from ..data.cleaning import shown
from ..errors import UserError, errors_about, reason
from ..evaluation.backends import hotcoco_evaluation
from ..evaluation.detections import Detections, read_detections
from ..evaluation.report import write_json
from .classification import classification_gallery, classification_numbers
from .comparison import compare
from .curves import curves
from .detection import detection_numbers
from .gallery import detection_gallery, truth_gallery
from .matching import match
from .page import write_page

logger = logging.getLogger(__name__)


@contextmanager
def not_fatal(path: Path) -> Iterator[None]:
    """What goes wrong with the report of a finished run is a warning."""
    try:
        yield
    except Exception as error:  # whatever it is, the results are there
        logger.warning("%s is not written: %s: %s", path, type(error).__name__, reason(error))


def write_detection_report(
    path: Path,
    data: Annotations,
    predictions: list[dict],
    iou_type: str,
    source: str = "predictions.json",
    against: tuple[str, list[dict]] | None = None,
    rows: Sequence[dict] = (),
    channels: int = 3,
    pictures: bool = True,
    numbers_path: Path | None = None,
) -> dict:
    """Write the page at `path` and its numbers at `numbers_path`, by default beside it as .json, and return them.

    Args:
        predictions: COCO's results format.
        iou_type: "bbox" or "segm".
        source: what the page and messages call the predictions.
        against: the name of other predictions, and these, to compare with.
        rows: those of a run's `metrics.jsonl`, for its curves.
        channels: of the images.
        pictures: False where the images are not at hand; their boxes are drawn on gray.

    Raises `UserError` if ground truth or predictions cannot be scored, or none is of a class of the ground truth.
    """
    if not data.is_labeled:
        raise UserError(f"{data.name} has no annotations to compare predictions with; is it a test set?")
    found, notes = _read(data, predictions, iou_type, source)
    evaluation = hotcoco_evaluation(data, found, iou_type)
    matches = match(data, found, iou_type, evaluation)
    numbers = detection_numbers(data, found, iou_type, evaluation, matches)
    if against is not None:
        other, more = _read(data, against[1], iou_type, against[0])
        notes += more
        numbers["comparison"] = compare(data, other, found, iou_type) | {"names": [against[0], source]}
    write_json(numbers_path or path.with_suffix(".json"), numbers)
    gallery = detection_gallery(data, found, matches, numbers["threshold"], channels, pictures)
    notes += _picture_notes(gallery, pictures)
    shapes = "boxes" if iou_type == "bbox" else "masks"
    overall = {name: "–" if value is None else f"{value:.1f}" for name, value in numbers["overall"].items()}
    counts = [("images", len(data)), ("objects", numbers["objects"]), ("predictions", numbers["predictions"])]
    content = {
        "kind": "detection",
        "title": data.name,
        "subtitle": f"{shapes}, COCO's metrics in percent",
        "cards": [*[(name, overall[name]) for name in ("AP", "AP50", "AP75", "AR")], *_formatted(counts)],
        "notes": notes,
        "classes": data.classes,
        "numbers": numbers,
        "curves": curves(rows),
        "gallery": gallery,
    }
    write_page(path, content)
    return numbers


def write_classification_report(
    path: Path,
    name: str,
    classes: Sequence[str],
    answers: Sequence[dict],
    read: Callable[[str], np.ndarray],
    rows: Sequence[dict] = (),
) -> dict:
    """Write the page at `path` and its numbers beside it as .json, and return them.

    Args:
        name: of the validation set.
        answers: of each image, from `evaluation.classification.evaluate_classifiers`.
        read: gives the pixels (H, W, C) of the image at a path.
        rows: those of a run's `metrics.jsonl`, for its curves.
    """
    numbers = classification_numbers(classes, answers)
    write_json(path.with_suffix(".json"), numbers)
    gallery = classification_gallery(answers, read)
    overall = [(title, f"{numbers['overall'][key]:.1f}") for key, title in (("top1", "top-1"), ("top5", "top-5"))]
    content = {
        "kind": "classification",
        "title": name,
        "subtitle": f"{len(classes)} classes, accuracy in percent",
        "cards": [*overall, *_formatted([("images", len(answers)), ("classes", len(classes))])],
        "notes": _picture_notes(gallery, True),
        "classes": list(classes),
        "numbers": numbers,
        "curves": curves(rows),
        "gallery": gallery,
    }
    write_page(path, content)
    return numbers


def write_data_report(path: Path, sets: Sequence[Annotations], text: str, channels: int = 3) -> None:
    """Write a page at `path` of the images of `sets`, which have the same classes, and of their objects.

    Args:
        text: what `check-data` says of them.
    """
    classes = list(dict.fromkeys(name for data in sets for name in data.classes))
    gallery = truth_gallery(sets, classes, channels)
    rows = []
    for name in classes:
        own = [(d, d.labels == d.classes.index(name) + 1) for d in sets if name in d.classes]
        images = sum(len(np.unique(d.image_index[kept])) for d, kept in own)
        rows.append({"class": name, "objects": int(sum(kept.sum() for _, kept in own)), "images": images})
    counts = [("images", sum(map(len, sets))), ("objects", sum(row["objects"] for row in rows)), ("classes", len(rows))]
    content = {
        "kind": "data",
        "title": ", ".join(data.name for data in sets),
        "subtitle": "ground truth",
        "cards": _formatted(counts),
        "text": text,
        "notes": _picture_notes(gallery, True),
        "classes": classes,
        "numbers": {"classes": rows},
        "curves": [],
        "gallery": gallery,
    }
    write_page(path, content)


def _read(data: Annotations, predictions: list[dict], iou_type: str, source: str) -> tuple[Detections, list[str]]:
    """The detections, and what to say about those left out."""
    with errors_about(source):
        found = read_detections(data, predictions, iou_type)
    left_out = len(predictions) - len(found.labels)
    if predictions and not len(found.labels):
        ids = ", ".join(str(category["id"]) for category in data.categories[:10])
        raise UserError(
            f"{source}: none of the {left_out} predictions is of a class of the ground truth, whose category ids are "
            f"{ids}; the first is of {shown(predictions[0]['category_id'])}. Are they of another data set?"
        )
    if not predictions:
        return found, [f"{source} has no predictions."]
    text = f"{source}: {left_out} of {len(predictions)} predictions are of classes that the ground truth does not have."
    return found, [text] if left_out else []


def _picture_notes(gallery: dict, pictures: bool) -> list[str]:
    """What to say about images that are not shown."""
    if not pictures:
        return ["The images are not shown, because their folder was not given: boxes are drawn on gray."]
    faults = [image["fault"] for image in gallery["images"] if "fault" in image]
    return [f"{len(faults)} of the images cannot be shown. {faults[0]}"] if faults else []


def _formatted(counts: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in counts]
