"""The one set of rules by which records of any format become `Annotations`; repairs are counted.

Real files are not as strict as a schema: ids are text or start at 0, values are null, boxes are missing, annotations
refer to images that are not listed. The loader, the scorer and `evaluate` all read through `clean`, so that they accept
the same files.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, unknown
from ..paths import stays_below
from . import columns
from .annotations import Annotations, Repair
from .json_file import read_json
from .ragged import pack_strings
from .segmentations import Segmentations, pack_segmentations

MAX_SIDE = 10**6  # pixels of an image's side; no image file has more
MAX_COORDINATE = 1e8  # pixels; anything beyond is a broken box
PLAIN_NAME = re.compile(r"\w[\w-]{,200}\.\w{,9}", re.ASCII)
Describe = Callable[[int], str]  # the text of an entry, from its index
OPEN_FORMATS = ("voc", "labelme")  # whose classes are the names that occur, not a list


def clean(
    name: str,
    format: str,
    image_root: Path | None,
    records: object,
    classes: Sequence[str] | None = None,
    source: str = "the annotations",
) -> Annotations:
    """The dataset `name` from records shaped as a COCO instances file.

    Args:
        image_root: the folder of the images, from which sizes that the records lack are read; None if there are no
            images, as when detections are scored.
        records: "images", "categories" and, except for a test set, "annotations".
        classes: the names of the classes to keep, in label order; by default all, in the order of their ids.
        source: what error messages call the records.

    Raises `UserError` if the records are not of that form, the id of an image or a category is missing or a duplicate,
    a file name points outside `image_root`, or one of `classes` does not exist.
    """
    images, objects, categories = _lists(records, source)
    repairs: list[Repair] = []
    images, image_ids = _distinct("image", images, "file_name", source, repairs)
    categories, category_ids = _distinct("category", categories, "name", source, repairs)
    file_names = _file_names(images, image_root is not None, source)
    categories, new_label = _chosen(_named(categories, source, repairs), classes, format, source)

    image_index = columns.positions(image_ids, [o.get("image_id") for o in objects])
    category = columns.positions(category_ids, [o.get("category_id") for o in objects])
    labels = np.where(category >= 0, np.append(new_label, 0)[category], -1)
    describe = _describer(objects, image_index, file_names)
    sizes = _sizes(images, file_names, image_root, objects, image_index, repairs)
    segmentations = [o.get("segmentation") for o in objects]
    object_sizes = np.append(sizes, [[0, 0]], axis=0)[image_index]
    boxes, has_box = _boxes(objects, segmentations, object_sizes, repairs, describe)
    areas = _areas(objects, boxes, repairs, describe)

    kept = _usable(image_index, labels, has_box, repairs, describe)
    packed, mended = pack_segmentations([segmentations[j] for j in kept.tolist()], object_sizes[kept])
    for what, rows in mended.items():
        _note(repairs, what, rows, lambda j: describe(kept[j]))
    return Annotations(
        name,
        format,
        Path(image_root or "."),
        categories,
        columns.as_array(image_ids),
        sizes,
        pack_strings(file_name.encode() for file_name in file_names),
        image_index[kept],
        labels[kept],
        boxes[kept],
        areas[kept],
        columns.flags([o.get("iscrowd") for o in objects])[kept],
        packed,
        records.get("annotations") is not None,
        tuple(repairs),
    )


def read_instances(path: str, image_root: Path | None = None, name: str | None = None) -> Annotations:
    """The COCO instances file at `path`, cleaned, to score detections against.

    `name` is for messages, by default the path. Raises `UserError` as `read_json` and `clean` do.
    """
    return clean(name or path, "coco", image_root, read_json(path), source=path)


def _usable(
    image_index: np.ndarray, labels: np.ndarray, has_box: np.ndarray, repairs: list[Repair], describe: Describe
) -> np.ndarray:
    """The indices of the objects that have an image, a chosen class and a box, in the order of their images."""
    left_out = {
        "annotations of an image that is not listed, left out": image_index < 0,
        "annotations of a category that is not listed, left out": (image_index >= 0) & (labels < 0),
        "annotations of classes that are not chosen, left out": (image_index >= 0) & (labels == 0),
        "annotations without a finite box, left out": (image_index >= 0) & (labels > 0) & ~has_box,
    }
    for what, rows in left_out.items():
        _note(repairs, what, rows, describe)
    kept = np.flatnonzero((image_index >= 0) & (labels > 0) & has_box)
    return kept[np.argsort(image_index[kept], kind="stable")]


def _lists(records: object, source: str) -> tuple[list[dict], list[dict], list[dict]]:
    """The images, annotations and categories. A test set has no annotations."""
    if not isinstance(records, dict):
        raise UserError(f"{source}: a COCO file is a mapping with images, annotations and categories.")
    lists = []
    for key in ("images", "annotations", "categories"):
        entries = records.get(key)
        if entries is None and key == "annotations":
            entries = []
        if not isinstance(entries, list):
            held = ", ".join(map(str, list(records)[:10])) or "nothing"
            raise UserError(f"{source}: the list {key!r} is missing; is it a COCO instances file? It holds {held}.")
        wrong = [entry for entry in entries if not isinstance(entry, dict)]
        if wrong:
            raise UserError(f"{source}: {key} has the entry {shown(wrong[0])}, which is not a mapping.")
        lists.append(entries)
    return tuple(lists)


def _distinct(
    kind: str, entries: list[dict], name: str, source: str, repairs: list[Repair]
) -> tuple[list[dict], list[columns.Hashable]]:
    """The entries with distinct ids, and the ids. One that is listed twice with the same `name` is taken once."""
    ids = columns.ids([entry.get("id") for entry in entries])
    if None in ids:
        entry = entries[ids.index(None)]
        raise UserError(
            f"{source}: the {kind} {shown(entry)} has {'the id ' + shown(entry['id']) if 'id' in entry else 'no id'}; "
            "it must be a whole number or text."
        )
    if len(set(ids)) == len(ids):
        return entries, ids
    first: dict[Any, int] = {}
    repeated = np.zeros(len(ids), bool)
    for k, (value, entry) in enumerate(zip(ids, entries, strict=True)):
        other = entries[first.setdefault(value, k)]
        if other.get(name) != entry.get(name):
            raise UserError(
                f"{source}: two entries have the {kind} id {value}, {shown(other.get(name))} and "
                f"{shown(entry.get(name))}; ids must be unique."
            )
        repeated[k] = first[value] != k
    _note(repairs, f"{kind} entries that are listed twice, taken once", repeated, lambda k: shown(entries[k]))
    kept = np.flatnonzero(~repeated).tolist()
    return [entries[k] for k in kept], [ids[k] for k in kept]


def _named(categories: list[dict], source: str, repairs: list[Repair]) -> list[dict]:
    """Categories with distinct, printable names; one without a name, or with a duplicate, is called after its id."""
    names: dict[str, None] = {}
    changed = np.zeros(len(categories), bool)
    for k, category in enumerate(categories):
        given = category.get("name")
        name = ("" if given is None else str(given).strip()) or str(category["id"])
        if not is_printable(name):
            raise UserError(f"{source}: the class name {name[:80]!r} has control characters.")
        if name in names:
            name = f"{name} ({category['id']})"
        changed[k] = given is None or name != str(given).strip()
        names[name] = None
    what = "categories without a name of their own, called after their ids"
    _note(repairs, what, changed, lambda k: shown(categories[k]))
    if len(names) < len(categories):
        raise UserError(f"{source}: several categories have the same name, even with their ids; give each its own.")
    return [category | {"name": name} for category, name in zip(categories, names, strict=True)]


def _chosen(
    categories: list[dict], classes: Sequence[str] | None, format: str, source: str
) -> tuple[list[dict], np.ndarray]:
    """The categories in label order, and for each of the given ones its label, 0 for those not chosen."""
    labels = np.zeros(len(categories), np.int64)
    if classes is None:
        order = sorted(
            range(len(categories)), key=lambda k: (isinstance(categories[k]["id"], str), categories[k]["id"])
        )
        labels[order] = np.arange(1, len(order) + 1)
        return [categories[k] for k in order], labels
    if len(set(classes)) < len(classes) or not classes:
        raise UserError(f"{source}: classes is {', '.join(classes) or 'empty'}; it must name each class once.")
    bad = next((name for name in classes if not is_printable(name)), None)
    if bad is not None:
        raise UserError(f"{source}: the class name {bad[:80]!r} has control characters.")
    by_name = {category["name"]: k for k, category in enumerate(categories)}
    chosen = []
    for label, name in enumerate(classes, 1):
        if name not in by_name and format not in OPEN_FORMATS:
            raise UserError(f"{source}: " + unknown("class", name, by_name))
        if name in by_name:
            labels[by_name[name]] = label
        chosen.append({"id": label, "name": name} if format in OPEN_FORMATS else categories[by_name[name]])
    return chosen, labels


def _file_names(images: list[dict], needed: bool, source: str) -> list[str]:
    """The file of each image, relative to the image folder; "" for one that has none and does not need it."""
    names = []
    for image in images:
        name = image.get("file_name") or ""
        if not isinstance(name, str) or not name:
            if needed:
                fault = f"the file_name {shown(name)}; it must be text" if name else "no file_name"
                raise UserError(f"{source}: the image {shown(image)} has {fault}.")
            name = ""
        elif not PLAIN_NAME.fullmatch(name):
            if not is_printable(name):
                raise UserError(f"{source}: image {image['id']} has the invalid file_name {name!r}.")
            name = name.replace("\\", "/")
            if needed and not stays_below(name):
                raise UserError(f"{source}: the file_name of image {image['id']} leaves the image folder: {name[:80]}.")
        names.append(name)
    return names


def _sizes(
    images: list[dict],
    file_names: list[str],
    image_root: Path | None,
    objects: list[dict],
    image_index: np.ndarray,
    repairs: list[Repair],
) -> np.ndarray:
    """(I, 2), width and height; missing ones are read from the image, or else from an RLE of it, or are 0."""
    sides = np.stack([columns.numbers([image.get(key) for image in images]) for key in ("width", "height")], axis=1)
    given = ((sides >= 1) & (sides <= MAX_SIDE) & (sides == np.round(sides))).all(1)
    sizes = np.where(given[:, None], sides, 0).astype(np.int64)
    if given.all():
        return sizes
    if image_root is not None:
        from .images import image_size  # not needed where sizes are given, and slow to import

        for k in np.flatnonzero(~given).tolist():
            try:
                sizes[k] = image_size(image_root / file_names[k])
            except UserError:  # the loader says what is wrong with it
                continue
        read, unread = ~given & (sizes > 0).all(1), (sizes == 0).any(1)
        _note(repairs, "images without a size, read from the file", read, lambda k: shown(images[k]))
        _note(repairs, "images without a size whose file cannot be read", unread, lambda k: shown(images[k]))
        return sizes
    for o, k in zip(objects, image_index.tolist(), strict=True):
        size = o["segmentation"].get("size") if isinstance(o.get("segmentation"), dict) else None
        if k >= 0 and not given[k] and isinstance(size, list) and len(size) == 2:
            sizes[k] = [v if type(v) is int and 0 < v <= MAX_SIDE else 0 for v in reversed(size)]
    return sizes


def _boxes(
    objects: list[dict], segmentations: list[Any], sizes: np.ndarray, repairs: list[Repair], describe: Describe
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (M, 4), and which objects have one (M,). A missing box is that of the segmentation."""
    boxes = columns.boxes([o.get("bbox") for o in objects])
    finite = (np.abs(boxes) < MAX_COORDINATE).all(1)  # False for NaN, too
    missing = np.flatnonzero(~finite)
    if len(missing):
        packed, _ = pack_segmentations([segmentations[j] for j in missing.tolist()], sizes[missing])
        for row, j in enumerate(missing.tolist()):
            if (bounds := _bounds(packed, row, *sizes[j].tolist())) is not None:
                boxes[j], finite[j] = bounds, True
        what = "annotations without a box, given that of their segmentation"
        _note(repairs, what, finite & _among(missing, finite), describe)
    return boxes, finite


def _bounds(segmentations: Segmentations, j: int, width: int, height: int) -> np.ndarray | None:
    """The box x, y, width, height of a segmentation; None if there is none."""
    segmentation = segmentations.as_coco(j, width, height)
    if isinstance(segmentation, dict):
        from pycocotools import mask  # slow to import

        return mask.toBbox(segmentation)
    if segmentation is None:
        return None
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
    return np.concatenate([points.min(0), np.ptp(points, axis=0)])


def _areas(objects: list[dict], boxes: np.ndarray, repairs: list[Repair], describe: Describe) -> np.ndarray:
    """(M,); an area that is missing, not finite or negative becomes that of the box."""
    given = [o.get("area") for o in objects]
    areas = columns.numbers(given)
    usable = (areas >= 0) & (areas < np.inf)
    wrong = ~usable & np.isfinite(boxes).all(1) & np.array([area is not None for area in given], bool)
    _note(repairs, "annotations whose area is negative or not finite, given that of their box", wrong, describe)
    return np.where(usable, areas, boxes[:, 2:].clip(0).prod(1))


def _among(rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    chosen = np.zeros(len(like), bool)
    chosen[rows] = True
    return chosen


def _note(repairs: list[Repair], what: str, rows: np.ndarray, describe: Describe) -> None:
    """Add a repair of the entries that the (N,) bool `rows` marks, if any; `describe` gives the text of one."""
    if rows.any():
        repairs.append(Repair(what, int(rows.sum()), describe(int(rows.argmax()))))


def _describer(objects: list[dict], image_index: np.ndarray, file_names: list[str]) -> Describe:
    """Describe an object by the beginning of its record and its image."""

    def describe(j: int) -> str:
        file_name = file_names[image_index[j]] if image_index[j] >= 0 else ""
        return f"{shown(objects[j])} of {file_name}" if file_name else shown(objects[j])

    return describe


def is_printable(text: str) -> bool:
    """Whether it has neither control characters, which move a terminal's cursor, nor surrogates."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def shown(entry: object) -> str:
    """The beginning of an entry, for messages."""
    try:
        return " ".join(str(entry)[:80].split())
    except ValueError:
        return f"a {type(entry).__name__} with an integer of thousands of digits"
