"""Datasets by name, and loaders. Independent of backbones and head libraries."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from ..paths import stays_below
from ..registry import Registry
from .annotations import Annotations, is_printable
from .coco import load_coco
from .dataset import DetectionDataset, check_same_classes
from .loader import build_test_loader, build_train_loader
from .shapes import load_shapes
from .voc import VOC_CLASSES, load_voc

__all__ = [
    "DATASETS",
    "Annotations",
    "DetectionDataset",
    "build_test_loader",
    "build_train_loader",
    "check_same_classes",
    "datasets_root",
    "find_dataset",
    "load_annotations",
]

# Of each format the reader and its required and optional arguments.
FORMATS = {
    "coco": (load_coco, ("root", "annotations"), ()),
    "voc": (load_voc, ("root", "split"), ("classes",)),
    "shapes": (load_shapes, ("root", "split"), ()),
}
# How to get the built-in ones; FOLDER is the first of the dataset's below ROOT, `datasets_root()`.
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


def datasets_root() -> Path:
    """The folder of built-in datasets: $RESNET_BACKBONES_DATASETS, by default ./datasets."""
    return Path(os.environ.get("RESNET_BACKBONES_DATASETS", "datasets"))


def load_annotations(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> Annotations:
    """Read the dataset `name`: one of the user's `own` (the config's `datasets:` section) or a built-in one.

    Raises `UserError` as `find_dataset` does, and for invalid content.
    """
    kind, row = find_dataset(name, own)
    load, _, _ = FORMATS[kind]
    return load(name, **row)


def find_dataset(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[str, dict[str, Any]]:
    """The format of the dataset `name`, and the arguments of its reader.

    Raises `UserError` for an unknown name, and for a missing key or file, with its path and how to get it.
    """
    root = datasets_root()
    own = own or {}
    if "/" in name or not stays_below(name) or not is_printable(name):
        raise UserError(f"Dataset {name[:80]!r} needs another name: result files are named after it.")
    if name in own:
        source = f"datasets.{name}"
        row = {key: value for key, value in own[name].items() if value not in (None, "")}
        remedy = f"correct {source} in the config"
        if root in (path := Path(row.get("root", ""))).parents:  # as in the shipped configs
            folder = path.relative_to(root).parts[0]
            remedy += f", or set RESNET_BACKBONES_DATASETS to the folder that contains {folder}/"
    elif name in DATASETS:
        source, row = name, dict(DATASETS.get(name))
        folder = Path(row["root"]).parts[0]
        remedy = DOWNLOADS.get(row["format"], "").format(root=root.absolute(), folder=folder)
        remedy += f", or set RESNET_BACKBONES_DATASETS to the folder that contains {folder}/"
        row |= {key: str(root / row[key]) for key in ("root", "annotations") if key in row}
    else:
        raise UserError(unknown("dataset", name, [*own, *dict(DATASETS)]))

    kind = row.pop("format", "coco")
    check_arguments(kind, row, source)
    if kind != "shapes":  # which are drawn
        for path in (row["root"], row.get("annotations", row["root"])):
            if "://" not in path and not os.path.exists(path):
                raise UserError(f"Dataset {name} is missing: {Path(path).absolute()} does not exist; {remedy}.")
    return kind, row


def check_arguments(kind: str, row: Mapping[str, Any], source: str) -> None:
    """Raise `UserError` if `kind` is not a format, or `row` does not have its arguments."""
    if kind not in FORMATS:
        raise UserError(f"{source}: " + unknown("format", kind, FORMATS))
    _, required, optional = FORMATS[kind]
    for key in required:
        if key not in row:
            raise UserError(f"{source}: the {kind} format needs {key!r}.")
    for key in row:
        if key not in required + optional:
            raise UserError(f"{source}: the {kind} format takes no {key!r}.")
