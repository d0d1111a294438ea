"""The reports: of detections, of a classifier's answers, and of data."""

import json
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
from ..paths import atomic_write
from .classification import classification_gallery, classification_numbers
from .comparison import compare
from .curves import curves
from .detection import detection_numbers
from .gallery import detection_gallery, truth_gallery
from .matching import Matches, match
from .page import write_page

logger = logging.getLogger(__name__)


@contextmanager
def not_fatal(path: Path) -> Iterator[None]:
    """Turn any error in the report of a finished run into a warning."""
    try:
        yield
    except Exception as error:  # whatever it is, the results are there
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        logger.warning("%s is not written: %s%s", path, kind, reason(error))


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
    title: str | None = None,
) -> dict:
    """Write the page at `path` and its numbers at `numbers_path`, by default beside it as .json, and return them.

    Args:
        predictions: COCO's results format.
        iou_type: "bbox" or "segm".
        source: what the page and messages call the predictions.
        against: other predictions to compare with: their name and content.
        rows: those of a run's `metrics.jsonl`, for its curves.
        channels: of the images.
        pictures: False if the images are not available; outlines are then drawn on gray.
        title: of the page, by default the name of the data.

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
        notes += more + _without_predictions(data, other, matches, against[0])
        numbers["comparison"] = compare(data, other, found, iou_type) | {"names": [against[0], source]}
    gallery = detection_gallery(data, found, matches, numbers["threshold"], channels, pictures)
    notes += _without_predictions(data, found, matches, source) + _picture_notes(gallery)
    for note in notes:
        logger.warning("%s", note)
    if not pictures:
        notes.append("The images are not shown, because their folder was not given: outlines are drawn on gray.")
    shapes = "boxes" if iou_type == "bbox" else "masks"
    overall = {name: "–" if value is None else f"{value:.1f}" for name, value in numbers["overall"].items()}
    counts = [("images", len(data)), ("objects", numbers["objects"]), ("predictions", numbers["predictions"])]
    content = {
        "kind": "detection",
        "title": title or data.name,
        "subtitle": f"{source} on {data.name}: COCO metrics of {shapes}, in percent",
        "cards": [*[(name, overall[name]) for name in ("AP", "AP50", "AP75", "AR")], *_formatted(counts)],
        "notes": notes,
        "classes": data.classes,
        "numbers": numbers,
        "curves": curves(rows),
        "gallery": gallery,
    }
    _write_both(path, content, numbers_path)
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
        answers: for each image, from `evaluation.classification.evaluate_classifiers`.
        read: gives the pixels (H, W, C) of the image at a path.
        rows: those of a run's `metrics.jsonl`, for its curves.
    """
    numbers = classification_numbers(classes, answers)
    gallery = classification_gallery(answers, read)
    overall = [(title, f"{numbers['overall'][key]:.1f}") for key, title in (("top1", "top-1"), ("top5", "top-5"))]
    content = {
        "kind": "classification",
        "title": name,
        "subtitle": f"{len(classes)} classes, accuracy in percent",
        "cards": [*overall, *_formatted([("images", len(answers)), ("classes", len(classes))])],
        "notes": _picture_notes(gallery),
        "classes": list(classes),
        "numbers": numbers,
        "curves": curves(rows),
        "gallery": gallery,
    }
    _write_both(path, content)
    return numbers


def write_data_report(path: Path, sets: Sequence[Annotations], text: str, channels: int = 3) -> None:
    """Write a page at `path` with the images and objects of `sets`, which have the same classes.

    Args:
        text: what `check-data` says about them.
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
        "notes": _picture_notes(gallery),
        "classes": classes,
        "numbers": {"classes": rows},
        "curves": [],
        "gallery": gallery,
    }
    write_page(path, content)


def _read(data: Annotations, predictions: list[dict], iou_type: str, source: str) -> tuple[Detections, list[str]]:
    """The detections, and notes about those left out."""
    with errors_about(source):
        found = read_detections(data, predictions, iou_type)
    left_out = len(predictions) - len(found.labels)
    if predictions and not len(found.labels):
        ids = ", ".join(str(category["id"]) for category in data.categories[:10])
        raise UserError(
            f"{source}: none of the {left_out} predictions is of a class of the ground truth, whose category ids are "
            f"{ids}; the first is of {shown(predictions[0]['category_id'])}. Are they from another data set?"
        )
    if not predictions:
        return found, [f"{source} has no predictions."]
    text = f"{source}: {left_out} of {len(predictions)} predictions are of classes that the ground truth does not have."
    return found, [text] if left_out else []


def _without_predictions(data: Annotations, found: Detections, matches: Matches, source: str) -> list[str]:
    """Notes about images with objects but no predictions, if others have some."""
    bare = np.bincount(found.image_index, minlength=len(data)) == 0
    if bare.all() or not bare[data.image_index[matches.to_find]].any():
        return []
    return [f"{source}: {bare.sum()} of {len(data)} images have no predictions; their objects count as missed."]


def _picture_notes(gallery: dict) -> list[str]:
    """Notes about images that cannot be read."""
    faults = [image["fault"] for image in gallery["images"] if "fault" in image]
    return [f"{len(faults)} of the images cannot be shown. {faults[0]}"] if faults else []


def _write_both(path: Path, content: dict, numbers_path: Path | None = None) -> None:
    """Write the page and its numbers, by default beside it as .json: both or, on an error, neither."""
    with atomic_write(numbers_path or path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(content["numbers"], indent=2) + "\n")
        write_page(path, content)


def _formatted(counts: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in counts]
