"""Pictures with what was found in them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..evaluation.samples import draw_objects

LARGEST_JPEG = 65_535  # pixels of a side
QUALITY = 92

Draw = Callable[[np.ndarray, dict], Image.Image]  # of an image and its entry in the journal


def drawing(categories: list[dict], thresholds: np.ndarray) -> Draw:
    """The function that draws the results of an image whose scores reach `thresholds` (K,), one of each category."""
    names = {category["id"]: category["name"] for category in categories}
    least = dict(zip(names, thresholds.tolist(), strict=True))

    def draw(pixels: np.ndarray, entry: dict) -> Image.Image:
        results = [result for result in entry["results"] if result["score"] >= least[result["category_id"]]]
        boxes = sorted((result for result in results if "bbox" in result), key=lambda result: result["score"])
        title = "" if "bbox" in (entry["results"] or [{"bbox": None}])[0] else _title(entry["results"], names)
        return draw_objects(pixels, names, boxes, title)

    return draw


def _title(results: list[dict], names: dict) -> str:
    """The best class of a classifier."""
    return f"{names[results[0]['category_id']]} {results[0]['score']:.2f}"


def save_picture(picture: Image.Image, path: Path) -> None:
    """Save to `path`, with ".png" behind it if it is not the name of a PNG or JPEG or too large for a JPEG."""
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    if max(picture.size) > LARGEST_JPEG if is_jpeg else path.suffix.lower() != ".png":
        path = path.with_name(f"{path.name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=QUALITY)
