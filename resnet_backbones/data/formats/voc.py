"""PASCAL VOC: a devkit of `Annotations/*.xml` and `JPEGImages/`, or a flat folder of XML and images."""

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from ...errors import UserError
from ..splits import Split
from .listing import ImageFiles, annotated, as_posix
from .records import numbered
from .xml import number, read_xml, size_of

logger = logging.getLogger(__name__)

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


def read_voc(
    root: Path, annotations: str | None, split: Split, classes: Sequence[str] | None = None
) -> tuple[Path, dict]:
    """The image root and the records of a devkit, or of the XML files, at any depth, in `annotations` or in `root`.

    The image of a file has its name and any suffix; if there is none, `filename` in the file names it. Categories are
    the names found, sorted; without `classes`, those of all files, whatever the split.

    VOC counts pixels from 1 and includes the last one: xmin … xmax becomes the edges xmin - 1 … xmax. Objects marked
    `difficult` become `iscrowd`: not trained on, ignored in evaluation, as in the devkit. A box with xmax <= xmin or
    ymax <= ymin has no area; a missing one is not finite.

    Raises `UserError` naming the file if a list is missing or wrong, or XML in the split is corrupt.
    """
    below = "JPEGImages/" if os.path.isdir(root / "JPEGImages") else ""
    folder = root / "Annotations" if os.path.isdir(root / "Annotations") else root
    folder = Path(annotations) if annotations else folder
    images = ImageFiles(root / below)
    files = annotated(images, folder, ".xml")
    chosen = split.choose(list(files))
    records: list[dict] = []
    objects: list[dict] = []
    for image in chosen:
        path = folder / files[image]
        tree = read_xml(path)
        if tree.tag != "annotation":
            logger.warning("%s is left out: its root is <%s>, not VOC's <annotation>", path, tree.tag[:80])
            continue
        file_name = below + _image_of(images, files[image], tree)
        size = size_of(tree.findtext("size/width"), tree.findtext("size/height"))
        records.append({"id": len(records) + 1, "file_name": file_name, **size})
        objects += [{"image_id": len(records), **_object(element, path)} for element in tree.iter("object")]

    names = {o["category_id"] for o in objects}
    if classes is None:
        names |= _names_in([folder / files[image] for image in set(files) - set(chosen)])
    return root, numbered(records, objects, sorted(names))


def _image_of(images: ImageFiles, file: str, tree: Element) -> str:
    """The image of the annotation file, or the name it should have if there is none."""
    stated, stem = (tree.findtext("filename") or "").strip(), os.path.splitext(file)[0]
    return images.find(stem, stated) or as_posix(stated).rpartition("/")[2] or f"{stem}.jpg"


def _object(element: Element, path: Path) -> dict:
    x0, y0, x1, y1 = (
        number((element.findtext(f"bndbox/{key}") or "").strip() or "nan", f"{path}: an object's {key}")
        for key in ("xmin", "ymin", "xmax", "ymax")
    )
    no_area = x1 <= x0 or y1 <= y0
    return {
        "category_id": _name(element, path),
        "bbox": [x0 - 1, y0 - 1, 0.0, 0.0] if no_area else [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1],
        "iscrowd": int((element.findtext("difficult") or "").strip().lower() in ("1", "true")),
    }


def _name(element: Element, path: Path) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{path}: an object has no name.")
    return name


def _names_in(paths: list[Path]) -> set[str]:
    """The names of the objects in files of other splits; what cannot be read is reported where its split is read."""
    names = set()
    for path in paths:
        with contextlib.suppress(UserError):
            names |= {_name(element, path) for element in read_xml(path).iter("object")}
    return names
