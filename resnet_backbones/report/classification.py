"""The numbers and the worst images of a classifier's report."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .calibration import calibration
from .confusion import confusion_table
from .gallery import MOST, fitting, picture


def classification_numbers(classes: Sequence[str], answers: Sequence[dict]) -> dict:
    """Top-1 and top-5 in percent, overall and by class, the confusion and the calibration.

    Args:
        answers: for each image, from `evaluation.classification.evaluate_classifiers`.
    """
    labels = np.array([answer["label"] for answer in answers], int)
    first = np.array([answer["labels"][0] for answer in answers], int)
    among_five = np.array([answer["label"] in answer["labels"] for answer in answers], bool)
    right = first == labels
    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (labels, first), 1)
    counts = np.bincount(labels, minlength=len(classes))
    by_class = (np.bincount(labels[hits], minlength=len(classes)) for hits in (right, among_five))
    top1, top5 = (100 * hits / np.maximum(counts, 1) for hits in by_class)
    rows = [
        {"class": name, "images": int(count), "top1": float(a) if count else None, "top5": float(b) if count else None}
        for name, count, a, b in zip(classes, counts, top1, top5, strict=True)
    ]
    overall = {"top1": 100 * float(right.mean()), "top5": 100 * float(among_five.mean())} if len(right) else {}
    return {
        "images": len(answers),
        "overall": overall,
        "classes": rows,
        "confusion": confusion_table(matrix, list(classes)),
        "calibration": calibration(np.array([answer["scores"][0] for answer in answers], float), right),
    }


def classification_gallery(answers: Sequence[dict], read: Callable[[str], np.ndarray]) -> dict:
    """The images, the lowest probability of the true class first, with the five most probable classes.

    Args:
        read: gives the pixels (H, W, C) of the image at a path.
    """
    worst = sorted(answers, key=lambda answer: answer["true_score"])[:MOST]

    def entries() -> Iterable[dict]:
        for answer in worst:
            path = answer["file_name"]
            scores = [round(score, 4) for score in answer["scores"]]
            best = {"label": answer["label"], "true_score": round(answer["true_score"], 4), "labels": answer["labels"]}
            yield picture(path, lambda path=path: read(path)) | best | {"scores": scores}

    return fitting(entries(), len(answers))
