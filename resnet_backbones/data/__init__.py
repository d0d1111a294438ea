"""Data sets by name, and loaders. Knows no backbone and no head library."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from ..paths import stays_below
from ..registry import Registry
from .annotations import Annotations, can_be_shown
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
    "load_annotations",
]

FORMATS = {"coco": load_coco, "voc": load_voc, "shapes": load_shapes}
REQUIRED = {"coco": ("root", "annotations"), "voc": ("root", "split"), "shapes": ("root", "split")}
OPTIONAL = {"coco": (), "voc": ("classes",), "shapes": ()}

# Built-in names: their format and its arguments, with paths below `datasets_root()`.
DATASETS = Registry("data set")
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
    """Where built-in data sets lie: $RESNET_BACKBONES_DATASETS, by default ./datasets."""
    return Path(os.environ.get("RESNET_BACKBONES_DATASETS", "datasets"))


def load_annotations(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> Annotations:
    """Read the data set `name`: one of the user's `own` (the config's `datasets:` section) or a built-in one.

    Raises `UserError` for an unknown name, a missing key or file (saying where it is looked for and how to get it),
    and whatever its format's reader refuses.
    """
    own = own or {}
    if "/" in name or not stays_below(name) or not can_be_shown(name):
        raise UserError(f"Data set {name[:80]!r} cannot be called so: files of its results bear its name.")
    if name in own:
        row = {key: value for key, value in own[name].items() if value not in (None, "")}
        where = f"datasets.{name}"
    elif name in DATASETS:
        row = dict(DATASETS.get(name))
        row["root"] = str(datasets_root() / row["root"])
        if "annotations" in row:
            row["annotations"] = str(datasets_root() / row["annotations"])
        where = name
    else:
        raise UserError(unknown("data set", name, [*own, *dict(DATASETS)]))

    kind = row.pop("format", "coco")
    if kind not in FORMATS:
        raise UserError(f"{where}: " + unknown("format", kind, FORMATS))
    for key in REQUIRED[kind]:
        if key not in row:
            raise UserError(f"{where}: the {kind} format needs {key!r}.")
    for key in row:
        if key not in REQUIRED[kind] + OPTIONAL[kind]:
            raise UserError(f"{where}: the {kind} format takes no {key!r}.")
    if kind != "shapes":
        for path in (row["root"], row.get("annotations", row["root"])):
            if "://" not in path and not os.path.exists(path):
                remedy = (
                    f"correct {where} in the config"
                    if name in own
                    else "datasets/README.md says how to get it; $RESNET_BACKBONES_DATASETS names another folder"
                )
                raise UserError(f"Data set {name} is not there: {Path(path).absolute()} does not exist; {remedy}.")
    return FORMATS[kind](name, **row)
