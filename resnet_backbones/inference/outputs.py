"""The output files of a prediction, written image by image from its journal."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..data.json_file import read_json
from ..errors import UserError
from ..evaluation.detections import coco_results
from ..paths import atomic_write
from .detections import Classification, Detections

ORIGIN = {"description": "the images and categories of predictions.json, by resnet-backbones predict"}
CSV_COLUMNS = ("image_id", "file_name", "class", "score", "x0", "y0", "x1", "y1")


def entry_of(
    found: Detections | Classification, name: str, image_id: int | str | None, category_ids: list[int | str]
) -> dict:
    """The results of one image for the journal.

    Args:
        image_id: None to number the images in the order of the journal, from 1.
        category_ids: in the order of the classes.
    """
    height, width = found.size
    if isinstance(found, Classification):
        pairs = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
        results = [{"category_id": category_ids[label], "score": score} for label, score in pairs]
    else:
        columns = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
        columns |= {} if found.rles is None else {"rles": found.rles}
        results = coco_results(columns, None, category_ids)
    return {"file_name": name, "image_id": image_id, "width": width, "height": height, "results": results}


def numbered(entries: Iterable[dict]) -> Iterator[tuple[int | str, dict]]:
    """The entries with their images' ids."""
    for number, entry in enumerate(entries, start=1):
        yield number if entry["image_id"] is None else entry["image_id"], entry


def write_json_files(entries: Iterable[dict], folder: Path, categories: list[dict]) -> int:
    """Write `predictions.json`, COCO's results format, and `images.json`, the images and categories as COCO has them.

    Returns the number of results.
    """
    images, count = [], 0
    with atomic_write(folder / "predictions.json") as path, open(path, "w") as file:
        file.write("[")
        for image_id, entry in numbered(entries):
            images.append({"id": image_id, **{key: entry[key] for key in ("file_name", "width", "height")}})
            for result in entry["results"]:
                file.write((",\n" if count else "\n") + json.dumps(result | {"image_id": image_id}))
                count += 1
        file.write("\n]\n")
    with atomic_write(folder / "images.json") as path:
        path.write_text(json.dumps({"info": ORIGIN, "images": images, "categories": categories}) + "\n")
    return count


def is_index(path: Path) -> bool:
    """Whether the file at `path` is an `images.json` of `write_json_files`."""
    try:
        content = read_json(str(path))
    except UserError:
        return False
    return isinstance(content, dict) and content.get("info") == ORIGIN


def write_csv(entries: Iterable[dict], folder: Path, categories: list[dict]) -> None:
    """Write `predictions.csv`, a row per result; the box of a classifier's result is the whole image."""
    names = {category["id"]: category["name"] for category in categories}
    # File names need not be valid text.
    text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic_write(folder / "predictions.csv") as path, open(path, "w", **text) as file:
        rows = csv.writer(file)
        rows.writerow(CSV_COLUMNS)
        for image_id, entry in numbered(entries):
            for result in entry["results"]:
                x, y, w, h = result.get("bbox", [0, 0, entry["width"], entry["height"]])
                name = names[result["category_id"]]
                rows.writerow([image_id, entry["file_name"], name, result["score"], x, y, x + w, y + h])
