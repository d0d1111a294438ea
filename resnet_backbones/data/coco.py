"""COCO's annotation files: boxes, polygons, RLE, iscrowd and category ids of any numbering."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..paths import local_file, read_whole, stays_below
from .annotations import (
    SIDE,
    Annotations,
    can_be_shown,
    check_classes,
    check_images_exist,
    finite_boxes,
    warn_of_skipped,
)
from .indices import indexed
from .outlines import pack_outlines
from .packed import pack_strings

LARGEST = 2**35  # bytes; the largest published ones have a tenth


def load_coco(name: str, root: Path, annotations: str) -> Annotations:
    """Read an instances file whose images lie in `root`.

    Raises `UserError` naming the file and the entry for JSON that is corrupt or lacks what detection needs, duplicate
    ids, references to nothing, and images that are not in `root`.
    """
    data = read_coco(name, root, annotations)
    check_images_exist(data)
    warn_of_skipped(data)
    return data


def read_coco(name: str, root: Path, annotations: str) -> Annotations:
    """What `load_coco` reads, before it looks for the images and warns."""

    def parse() -> Annotations:
        with without_garbage_collection():
            return parse_coco(name, root, read_json(annotations), annotations)

    return indexed(local_file(annotations, "annotation file"), name, root, parse)


def parse_coco(name: str, root: Path, content: object, source: str) -> Annotations:
    """The content of an instances file, checked; `source` is for messages. A change here raises `indices.FORMAT`."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: a COCO file is a mapping with images, annotations and categories.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{source}: the list {key!r} is missing; is it a COCO instances file?")
    images, objects = content["images"], content["annotations"]
    categories = content["categories"]
    image_ids = _ids("image", images, source)
    category_ids = _ids("category", categories, source)
    object_ids = _ids("annotation", objects, source)
    sizes, file_names = _image_columns(images, source)
    for category in categories:
        _check_key("category", category, "name", str, source)
    check_classes([category["name"] for category in categories], source)
    order = np.argsort(category_ids, kind="stable")

    images_of = _references("image", image_ids, objects, source)
    labels = np.argsort(order)[_references("category", category_ids, objects, source)] + 1
    boxes = _boxes(objects, source)
    crowds, areas = _crowds_and_areas(objects, boxes, source)
    finite, left_out = finite_boxes(boxes, file_names, images_of)
    kept = np.flatnonzero(finite)[np.argsort(images_of[finite], kind="stable")]
    return Annotations(
        name,
        "coco",
        Path(root),
        [categories[k] for k in order],
        image_ids,
        sizes,
        pack_strings(file_name.encode() for file_name in file_names),
        object_ids[kept],
        images_of[kept],
        labels[kept],
        boxes[kept],
        areas[kept],
        crowds[kept],
        pack_outlines([objects[j].get("segmentation") for j in kept]),
        left_out,
    )


def read_json(path: str) -> object:
    """The content of a JSON file. Raises `UserError` naming the file and where it is corrupt."""
    try:
        return json.loads(read_whole(local_file(path, "annotation file"), LARGEST))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Without Python's search for cycles, which would look through millions of new objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _column(kind: str, entries: list[dict], key: str, wanted: type, source: str) -> list:
    """`key` of every entry. Raises `UserError` naming the first entry without it or of another type."""
    try:
        values = [entry[key] for entry in entries]
        if all(type(value) is wanted for value in values):
            return values
    except (TypeError, KeyError, IndexError):
        pass
    for entry in entries:
        _check_key(kind, entry, key, wanted, source)
    return [entry[key] for entry in entries]  # subclasses, as True is of int


def _check_key(kind: str, entry: object, key: str, wanted: type, source: str) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), wanted):
        raise UserError(f"{source}: {kind} {_shown(entry)} has no {key!r} of type {wanted.__name__}.")


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
    """The index among `ids` of each object's `kind`_id. Raises `UserError` for one that is not among them."""
    wanted = _integers("annotation", objects, f"{kind}_id", source)
    order = np.argsort(ids, kind="stable")
    places = np.searchsorted(ids[order], wanted).clip(max=max(len(ids) - 1, 0))
    found = ids[order][places] == wanted if len(ids) else np.zeros(len(wanted), bool)
    if not found.all():
        j = found.argmin()
        raise UserError(f"{source}: annotation {objects[j]['id']} is of {kind} {wanted[j]}, which is not listed.")
    return order[places]


def _image_columns(images: list[dict], source: str) -> tuple[np.ndarray, list[str]]:
    """Sizes (I, 2) and file names."""
    width, height = (_column("image", images, key, int, source) for key in ("width", "height"))
    file_names = _column("image", images, "file_name", str, source)
    for image, w, h, name in zip(images, width, height, file_names, strict=True):
        if not (0 < w <= SIDE and 0 < h <= SIDE):
            raise UserError(f"{source}: image {image['id']} is {w} x {h} pixels.")
        if not (name.isascii() and name.isprintable()) and not can_be_shown(name):
            raise UserError(f"{source}: image {image['id']} has the unusable file_name {name!r}.")
        if not stays_below(name):
            raise UserError(f"{source}: image {image['id']} leaves the image folder: {name[:80]}.")
    return np.array([width, height], np.int64).T.reshape(-1, 2), file_names


def _boxes(objects: list[dict], source: str) -> np.ndarray:
    """(M, 4), float64. Raises `UserError` naming the first bbox that is not four numbers."""
    given = _column("annotation", objects, "bbox", list, source)
    try:
        boxes = np.array(given) if given else np.zeros((0, 4))
        if boxes.dtype.kind in "if" and boxes.shape == (len(objects), 4):
            return boxes.astype(np.float64)
    except ValueError:
        pass  # of unequal lengths
    for o, box in zip(objects, given, strict=True):
        if len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
            raise UserError(f"{source}: annotation {o['id']} has bbox {box}, not four numbers [x, y, width, height].")
    return np.array([[_float(v) for v in box] for box in given])


def _crowds_and_areas(objects: list[dict], boxes: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray]:
    crowds = [o.get("iscrowd", 0) for o in objects]
    products = boxes[:, 2:].clip(0).prod(1).tolist()
    areas = [o.get("area", product) for o, product in zip(objects, products, strict=True)]
    for o, crowd, area in zip(objects, crowds, areas, strict=True):
        if crowd not in (0, 1) or not isinstance(area, (int, float)):
            raise UserError(
                f"{source}: annotation {o['id']} has an iscrowd other than 0 and 1 or an area that is no number."
            )
    return np.array(crowds, np.int8), np.array([_float(area) for area in areas], np.float64)


def _float(value: float) -> float:
    """`value` with integers that no float can hold made infinite."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _shown(entry: object) -> str:
    return " ".join(str(entry)[:80].split())
