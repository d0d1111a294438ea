"""The images of a report with their ground truth and predictions, as data that the page draws."""

import json
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pycocotools import mask as rle

from ..data.annotations import Annotations
from ..data.images import read_image
from ..errors import UserError
from ..evaluation.detections import Detections
from .matching import DECIMALS, Matches, worst_images
from .pictures import Outlines, data_uri

MOST = 100  # images
LARGEST = 7_000_000  # characters of all images of a page with their objects, which keeps it below 8 MB
PICTURE = 45_000  # characters of an image alone


def detection_gallery(
    data: Annotations, found: Detections, matches: Matches, threshold: float, channels: int = 3, pictures: bool = True
) -> dict:
    """The images with the lowest F1 at `threshold` first, with their objects and detections."""
    order, f1 = worst_images(data, found, matches, threshold)
    by_image = np.argsort(found.image_index, kind="stable")
    starts = np.searchsorted(found.image_index[by_image], np.arange(len(data) + 1))
    outlines = None if found.masks is None else Outlines()

    def entries() -> Iterable[dict]:
        for k in order[:MOST].tolist():
            objects = range(data.starts[k], data.starts[k + 1])
            detections = by_image[starts[k] : starts[k + 1]].tolist()
            yield _image(data, k, channels, pictures) | {
                "f1": round(float(f1[k]), 3),
                "true": [_object(data, j, outlines) | _match(found, matches, j) for j in objects],
                "predicted": [_detection(found, matches, j, outlines) for j in detections],
            }

    return fitting(entries(), len(data))


def truth_gallery(sets: Sequence[Annotations], classes: Sequence[str], channels: int = 3) -> dict:
    """Images of all sets, evenly spaced, with their objects; labels are places in `classes`."""
    every = [(data, k) for data in sets for k in range(len(data))]
    places = np.linspace(0, len(every) - 1, min(MOST, len(every))).astype(int).tolist()
    outlines = Outlines()

    def entries() -> Iterable[dict]:
        for data, k in (every[place] for place in places):
            objects = range(data.starts[k], data.starts[k + 1])
            true = [_object(data, j, outlines) | ({"crowd": 1} if data.crowds[j] else {}) for j in objects]
            for row in true:
                row["label"] = classes.index(data.classes[row["label"]])
            yield _image(data, k, channels, True) | {"set": data.name, "true": true, "predicted": []}

    return fitting(entries(), len(every))


def fitting(entries: Iterable[dict], total: int) -> dict:
    """The first of the entries, as many as fit on a page, and the number of all images."""
    chosen, size = [], 0
    for entry in entries:
        size += len(json.dumps(entry))
        if size > LARGEST:
            break
        chosen.append(entry)
    return {"images": chosen, "total": total}


def picture(name: str, read: Callable[[], np.ndarray] | None, size: Sequence[int] = (0, 0)) -> dict:
    """The name, size and JPEG of an image; if it cannot be read, what is wrong.

    Args:
        read: gives the pixels (H, W, C); None for a report without pictures.
        size: width and height if they are known; otherwise those of the pixels.
    """
    entry = {"name": name, "size": list(size)}
    if read is None:
        return entry
    try:
        pixels = read()
    except UserError as error:
        return entry | {"fault": str(error)}
    known = entry["size"] if all(size) else list(pixels.shape[1::-1])
    return entry | {"size": known, "picture": data_uri(pixels, PICTURE)}


def _image(data: Annotations, k: int, channels: int, pictures: bool) -> dict:
    size = data.sizes[k].tolist()
    wanted = tuple(size) if all(size) else None
    read = (lambda: read_image(data.path(k), wanted, channels)) if pictures else None
    return picture(data.file_name(k), read, size)


def _object(data: Annotations, j: int, outlines: Outlines | None) -> dict:
    path = None if outlines is None else outlines.of(data.segmentation(j))
    return _shape(data.boxes[j], path) | {"label": int(data.labels[j]) - 1}


def _match(found: Detections, matches: Matches, j: int) -> dict:
    """The score of the detection that matches object j, or a note that it need not be found."""
    if not matches.to_find[j]:
        return {"crowd": 1}
    k = int(matches.detection_of[j])
    return {"by": _score(found, k)} if k >= 0 else {}


def _detection(found: Detections, matches: Matches, j: int, outlines: Outlines | None) -> dict:
    if outlines is None:
        shape = _shape(found.boxes[j], None)
    else:
        shape = _shape(rle.toBbox(found.masks[j]), outlines.of(found.masks[j]))
    return shape | {"label": int(found.labels[j]) - 1} | {"score": _score(found, j), "status": int(matches.status[j])}


def _score(found: Detections, j: int) -> float:
    """The score, rounded down so that it stays on the same side of a threshold of as many decimals."""
    return math.floor(float(found.scores[j]) * 10**DECIMALS) / 10**DECIMALS


def _shape(box: np.ndarray, path: str | None) -> dict:
    row = {"box": np.round(box, 1).tolist()}
    return row if path is None else row | {"path": path}
