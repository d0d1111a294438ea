"""Datasets by name: the built-in ones and those of a config's `datasets:` section."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, errors_about, unknown
from ..paths import stays_below
from ..registry import Registry
from .annotations import Annotations, check_images_exist, report
from .cleaning import clean, is_printable
from .formats.coco import read_coco
from .formats.cvat import read_cvat
from .formats.guess import TITLES, guess_format
from .formats.labelme import read_labelme
from .formats.shapes import read_shapes
from .formats.voc import VOC_CLASSES, read_voc
from .formats.yolo import read_yolo
from .splits import Split, is_part, parts_of

logger = logging.getLogger(__name__)

# Each is called with root, annotations, split and classes, and returns the folder that file names are relative to and
# records shaped like a COCO instances file.
FORMATS = {
    "coco": read_coco,
    "voc": read_voc,
    "yolo": read_yolo,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "shapes": read_shapes,
}
KEYS = ("format", "root", "annotations", "split", "split_seed", "classes")
# How to get the built-in ones; FOLDER is the dataset's top folder below ROOT, `datasets_root()`.
DOWNLOADS = {
    "coco": "download it from https://cocodataset.org/#download and unpack its archives in {root}/{folder}",
    "voc": "download it from http://host.robots.ox.ac.uk/pascal/VOC, unpack it and move VOCdevkit/{folder} to "
    "{root}/{folder}",
}

# Built-in names with the format and its arguments; paths are relative to `datasets_root()`.
DATASETS = Registry("dataset")
for _year, _split in [("2014", "train"), ("2014", "val"), ("2017", "train"), ("2017", "val")]:
    DATASETS.add(
        f"coco_{_year}_{_split}",
        {
            "format": "coco",
            "root": f"coco/{_split}{_year}",
            "annotations": f"coco/annotations/instances_{_split}{_year}.json",
        },
    )
for _year, _split in [(y, s) for y in ("2007", "2012") for s in ("train", "val", "trainval", "test")]:
    DATASETS.add(
        f"voc_{_year}_{_split}",
        {"format": "voc", "root": f"VOC{_year}", "split": _split, "classes": VOC_CLASSES},
    )
for _split in ("train", "val"):
    DATASETS.add(f"shapes_{_split}", {"format": "shapes", "root": "shapes", "split": _split})


@dataclass(frozen=True)
class Dataset:
    """Where a dataset is and how to read it; `told_by` is the file that its format was guessed from."""

    name: str
    format: str
    root: Path
    annotations: str | None
    split: Split
    classes: list[str] | None
    told_by: str | None


def datasets_root() -> Path:
    """The folder of built-in datasets: $RESNET_BACKBONES_DATASETS, by default ./datasets."""
    return Path(os.environ.get("RESNET_BACKBONES_DATASETS", "datasets"))


def load_annotations(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> Annotations:
    """Read the dataset `name`: one of the user's `own` (the config's `datasets:` section) or a built-in one.

    Raises `UserError` as `find_dataset` does, for invalid content and for images that are missing.
    """
    data = read_annotations(name, own)
    check_images_exist(data)
    report(data)
    return data


def read_annotations(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> Annotations:
    """`load_annotations` without looking for the images and without reporting repairs."""
    found = find_dataset(name, own)
    if found.told_by:
        logger.info("%s: read as %s (found %s)", name, TITLES[found.format], found.told_by)
    image_root, records = FORMATS[found.format](found.root, found.annotations, found.split, found.classes)
    source = found.annotations or str(found.root)
    return clean(name, found.format, image_root, records, found.classes, source)


def find_dataset(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> Dataset:
    """The dataset `name`, without reading its annotations.

    Raises `UserError` for an unknown name, for a missing key or file, with its path and how to get it, and for a format
    that is not recognized.
    """
    own = own or {}
    if "/" in name or not stays_below(name) or not is_printable(name):
        raise UserError(f"Dataset {name[:80]!r} needs another name: result files are named after it.")
    if name in own:
        source, row = f"datasets.{name}", _given(own[name])
        remedy = _remedy_for_own(source, Path(row.get("root", "")))
    elif name in DATASETS:
        source, row = name, dict(DATASETS.get(name))
        remedy = _remedy_for_built_in(row)
        row |= {key: str(datasets_root() / row[key]) for key in ("root", "annotations") if key in row}
    else:
        raise UserError(unknown("dataset", name, [*own, *dict(DATASETS)]))

    check_keys(row, source)
    root, annotations = Path(row["root"]), row.get("annotations")
    if row.get("format") != "shapes":  # which are drawn
        for path in (str(root), annotations or str(root)):
            if "://" not in path and not os.path.exists(path):
                raise UserError(f"Dataset {name} is missing: {Path(path).absolute()} does not exist; {remedy}.")
        if not os.path.isdir(root):
            raise UserError(f"{source}: root {root} is not a folder; set it to the folder of the images.")
    with errors_about(source):
        kind, told_by = (row["format"], None) if "format" in row else guess_format(root, annotations)
        split = str(row["split"]) if "split" in row else None
        part = None if kind == "shapes" or not is_part(split, root) else _part(name, own, kind)
    split = Split(source, root, split, row.get("split_seed", 0), part)
    return Dataset(name, kind, root, annotations, split, list(row["classes"]) if row.get("classes") else None, told_by)


def check_keys(row: Mapping[str, Any], source: str) -> None:
    """Raise `UserError` for an unknown key or format, and for a root that is missing."""
    for key in row:
        if key not in KEYS:
            raise UserError(f"{source}: " + unknown("key", key, KEYS))
    kind = row.get("format")
    if kind is not None and kind not in FORMATS:
        raise UserError(f"{source}: " + unknown("format", kind, FORMATS))
    if "root" not in row:
        raise UserError(f"{source} needs 'root', the folder of its images.")
    if kind == "shapes" and "annotations" in row:
        raise UserError(f"{source}: the shapes format takes no 'annotations'.")


def _part(name: str, own: Mapping[str, Mapping[str, Any]], kind: str) -> tuple[float, float]:
    """Where the entry `name` starts and ends in the shuffle that it shares with the entries of the same data."""

    def data(row: Mapping[str, Any]) -> tuple:
        paths = [os.path.realpath(row[key]) if key in row else None for key in ("root", "annotations")]
        return (*paths, row.get("split_seed", 0), row.get("format", kind))

    rows = {other: _given(row) for other, row in own.items()}
    same = {other: row for other, row in rows.items() if data(row) == data(rows[name])}
    root = Path(rows[name]["root"])
    splits = {other: str(row["split"]) for other, row in same.items() if is_part(str(row.get("split")), root)}
    return parts_of(splits)[name]


def _given(row: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in row.items() if value not in (None, "")}
    return given | {key: os.path.expanduser(given[key]) for key in ("root", "annotations") if key in given}


def _remedy_for_own(source: str, path: Path) -> str:
    remedy = f"correct {source} in the config"
    if datasets_root() in path.parents:  # as in the shipped configs
        folder = path.relative_to(datasets_root()).parts[0]
        remedy += f", or set RESNET_BACKBONES_DATASETS to the folder that contains {folder}/"
    return remedy


def _remedy_for_built_in(row: Mapping[str, Any]) -> str:
    root, folder = datasets_root(), Path(row["root"]).parts[0]
    download = DOWNLOADS.get(row["format"], "").format(root=root.absolute(), folder=folder)
    return f"{download}, or set RESNET_BACKBONES_DATASETS to the folder that contains {folder}/"
