"""COCO's annotation files: boxes, polygons, RLE, iscrowd and category ids of any numbering."""

import gc
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson

from ..errors import UserError
from ..paths import local_file, read_whole, stays_below
from .annotations import (
    MAX_SIDE,
    Annotations,
    check_classes,
    check_images_exist,
    finite_boxes,
    is_printable,
    warn_skipped,
)
from .ragged import pack_strings
from .segmentations import pack_segmentations

LARGEST = 2**35  # bytes; the largest published files have a tenth of it
PLAIN_NAME = re.compile(r"\w[\w-]{,200}\.\w{,9}", re.ASCII)


def load_coco(name: str, root: Path, annotations: str) -> Annotations:
    """Read an instances file; its images are in `root`.

    Raises `UserError` naming the file and the entry if the JSON is corrupt or incomplete, ids are not unique or refer
    to nothing, or images are missing.
    """
    data = read_coco(name, root, annotations)
    check_images_exist(data)
    warn_skipped(data)
    return data


def read_coco(name: str, root: Path, annotations: str) -> Annotations:
    """`load_coco` without looking for the images and without warnings."""
    with without_garbage_collection():
        return parse_coco(name, root, read_json(annotations), annotations)


def parse_coco(name: str, root: Path, content: object, source: str) -> Annotations:
    """The content of an instances file, checked; error messages call it `source`."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: a COCO file is a mapping with images, annotations and categories.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{source}: the list {key!r} is missing; is it a COCO instances file?")
    images, objects, categories = content["images"], content["annotations"], content["categories"]
    image_ids = _ids("image", images, source)
    category_ids = _ids("category", categories, source)
    object_ids = _ids("annotation", objects, source)
    sizes, file_names = _image_columns(images, source)
    check_classes(_column("category", categories, "name", str, source), source)
    order = np.argsort(category_ids)

    image_index = _references("image", image_ids, objects, source)
    labels = np.argsort(order)[_references("category", category_ids, objects, source)] + 1
    boxes = _boxes(objects, source)
    crowds, areas = _crowds_and_areas(objects, boxes, source)
    finite, skipped = finite_boxes(boxes, file_names, image_index)
    kept = np.flatnonzero(finite)[np.argsort(image_index[finite], kind="stable")]
    return Annotations(
        name,
        "coco",
        Path(root),
        [categories[k] for k in order],
        image_ids,
        sizes,
        pack_strings(file_name.encode() for file_name in file_names),
        object_ids[kept],
        image_index[kept],
        labels[kept],
        boxes[kept],
        areas[kept],
        crowds[kept],
        pack_segmentations([objects[j].get("segmentation") for j in kept]),
        skipped,
    )


def read_json(path: str) -> object:
    """The content of a JSON file. Raises `UserError` naming the file and where it is corrupt."""
    try:
        content = read_whole(local_file(path, "annotation file"), LARGEST)
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            return json.loads(content)  # takes NaN, Infinity and integers of any size, as Python's json writes them
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn off Python's search for cycles, which would scan millions of new objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _column(kind: str, entries: list[dict], key: str, wanted: type, source: str) -> list:
    """`key` of every entry. Raises `UserError` naming the first entry without it or with another type."""
    try:
        values = [entry[key] for entry in entries]
        if set(map(type, values)) <= {wanted}:
            return values
    except (TypeError, KeyError, IndexError):
        pass
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get(key), wanted):
            raise UserError(f"{source}: {kind} {_shown(entry)} has no {key!r} of type {wanted.__name__}.")
    return [entry[key] for entry in entries]  # of a subclass, as bool is one of int


def _integers(kind: str, entries: list[dict], key: str, source: str) -> np.ndarray:
    values = _column(kind, entries, key, int, source)
    try:
        return np.array(values, np.int64)
    except OverflowError:
        large = next(entry for entry in entries if not -(2**63) <= entry[key] < 2**63)
        raise UserError(f"{source}: {kind} {_shown(large)} has a {key!r} of more than 64 bits.") from None


def _ids(kind: str, entries: list[dict], source: str) -> np.ndarray:
    ids = _integers(kind, entries, "id", source)
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise UserError(f"{source}: two entries have the {kind} id {values[counts > 1][0]}; ids must be unique.")
    return ids


def _references(kind: str, ids: np.ndarray, objects: list[dict], source: str) -> np.ndarray:
    """(M,): the index in `ids` of each object's `kind`_id. Raises `UserError` for one that is not among them."""
    wanted = _integers("annotation", objects, f"{kind}_id", source)
    order = np.argsort(ids)
    indices = np.searchsorted(ids, wanted, sorter=order).clip(max=max(len(ids) - 1, 0))
    found = ids[order][indices] == wanted if len(ids) else np.zeros(len(wanted), bool)
    if not found.all():
        j = found.argmin()
        raise UserError(f"{source}: annotation {objects[j]['id']} is of {kind} {wanted[j]}, which is not listed.")
    return order[indices]


def _image_columns(images: list[dict], source: str) -> tuple[np.ndarray, list[str]]:
    """Sizes (I, 2) and file names."""
    width, height = (_column("image", images, key, int, source) for key in ("width", "height"))
    file_names = _column("image", images, "file_name", str, source)
    for image, w, h, name in zip(images, width, height, file_names, strict=True):
        if not (0 < w <= MAX_SIDE and 0 < h <= MAX_SIDE):
            raise UserError(f"{source}: image {image['id']} is {w} x {h} pixels.")
        if PLAIN_NAME.fullmatch(name):
            continue
        if not is_printable(name):
            raise UserError(f"{source}: image {image['id']} has the invalid file_name {name!r}.")
        if not stays_below(name):
            raise UserError(f"{source}: the file_name of image {image['id']} leaves the image folder: {name[:80]}.")
    return np.array([width, height], np.int64).T.reshape(-1, 2), file_names


def _boxes(objects: list[dict], source: str) -> np.ndarray:
    """(M, 4), float64. Raises `UserError` naming the first bbox that is not four numbers."""
    boxes = _column("annotation", objects, "bbox", list, source)
    values = list(itertools.chain.from_iterable(boxes))
    if not (set(map(len, boxes)) <= {4} and set(map(type, values)) <= {int, float}):
        for o, box in zip(objects, boxes, strict=True):
            if len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
                raise UserError(
                    f"{source}: annotation {o['id']} has bbox {box}, not four numbers [x, y, width, height]."
                )
    return _floats(values).reshape(-1, 4)


def _crowds_and_areas(objects: list[dict], boxes: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Both (M,). A missing area is that of the box."""
    crowds = [o.get("iscrowd", 0) for o in objects]
    products = boxes[:, 2:].clip(0).prod(1).tolist()
    areas = [o.get("area", product) for o, product in zip(objects, products, strict=True)]
    if not (set(map(type, crowds)) <= {int} and set(crowds) <= {0, 1} and set(map(type, areas)) <= {int, float}):
        for o, crowd, area in zip(objects, crowds, areas, strict=True):
            if crowd not in (0, 1) or not isinstance(area, (int, float)):
                raise UserError(
                    f"{source}: annotation {o['id']} has an iscrowd other than 0 and 1 or an area that is not a number."
                )
    return np.array(crowds, np.int8), _floats(areas)


def _floats(values: list[float]) -> np.ndarray:
    """float64; integers that are too large for it become infinite."""
    try:
        return np.array(values, np.float64)
    except OverflowError:
        largest = int(np.finfo(np.float64).max)
        return np.array([np.inf if abs(value) > largest else value for value in values], np.float64)


def _shown(entry: object) -> str:
    return " ".join(str(entry)[:80].split())
