"""Pictures with the results drawn on them."""

import hashlib
import os
import posixpath
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from PIL import Image

from ..evaluation.samples import draw_objects

LARGEST_JPEG = 65_535  # pixels of a side
LONGEST_NAME = 255  # bytes of a file's name
QUALITY = 92

Draw = Callable[[np.ndarray, dict], Image.Image]  # of an image and its entry in the journal


def drawing(categories: list[dict], thresholds: np.ndarray) -> Draw:
    """The function that draws the results of an image whose scores reach `thresholds` (K,), one per category."""
    names = {category["id"]: category["name"] for category in categories}
    least = dict(zip(names, thresholds.tolist(), strict=True))

    def draw(pixels: np.ndarray, entry: dict) -> Image.Image:
        results = [result for result in entry["results"] if result["score"] >= least[result["category_id"]]]
        boxes = sorted((result for result in results if "bbox" in result), key=lambda result: result["score"])
        title = "" if "bbox" in (entry["results"] or [{"bbox": None}])[0] else _title(entry["results"], names)
        return draw_objects(pixels, names, boxes, title)

    return draw


def _title(results: list[dict], names: dict) -> str:
    """The best class and its score, for a classifier."""
    return f"{names[results[0]['category_id']]} {results[0]['score']:.2f}"


def save_picture(picture: Image.Image, folder: Path, name: str, inputs: Collection[str]) -> None:
    """Save the picture of the input `name` below `folder`, as a PNG if `name` is not a JPEG's or it is too large."""
    suffix = posixpath.splitext(name)[1].lower()
    fits = max(picture.size) <= LARGEST_JPEG if suffix in (".jpg", ".jpeg") else suffix == ".png"
    path = folder / written_name(name, "" if fits else ".png", inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=QUALITY)


def written_name(name: str, suffix: str, inputs: Collection[str]) -> str:
    """The name of the output for the input `name`: `name` and `suffix`, repeated while that is another of `inputs`.

    Parts that are too long for a file's name end in a hash instead.
    """
    *folders, file = (name + suffix).split("/")
    while suffix and "/".join([*folders, file]) in inputs:
        file += suffix
    return "/".join([*(shortened(part) for part in folders), shortened(file, suffix or posixpath.splitext(file)[1])])


def shortened(part: str, suffix: str = "") -> str:
    content = os.fsencode(part)
    if len(content) <= LONGEST_NAME:
        return part
    end = f"~{hashlib.sha256(content).hexdigest()[:8]}{suffix}"
    return content[: LONGEST_NAME - len(end)].decode(errors="ignore") + end
