"""PASCAL VOC devkits: `Annotations/*.xml`, `ImageSets/Main/SPLIT.txt`, `JPEGImages/`."""

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError, unknown
from ..paths import read_whole, stays_below
from .annotations import SIDE, Annotations, check_classes, check_images_exist, finite_boxes, warn_of_skipped
from .images import image_size
from .outlines import pack_outlines
from .packed import pack_strings
from .xml import LARGEST, parse_xml

VOC_CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


def load_voc(name: str, root: Path, split: str, classes: Sequence[str] | None = None) -> Annotations:
    """Read one split of a devkit; label order is that of `classes`, by default all names in Annotations, sorted.

    VOC counts pixels from 1 and includes the last one: xmin … xmax becomes the edges xmin - 1 … xmax. Objects marked
    `difficult` become `iscrowd`: not trained on, ignored in evaluation, as in the devkit. An object whose xmax or
    ymax does not exceed its minimum is counted as a box of no area.

    Raises `UserError` naming the file for a missing list, XML or image, XML that is corrupt and unknown classes.
    """
    root = Path(root)
    names = _listed(root / "ImageSets" / "Main", split, name)
    if classes is None:
        classes = _all_classes(root)
    check_classes(list(classes), f"Data set {name}")
    if len(set(classes)) < len(classes):
        raise UserError(f"Data set {name}: classes lists a name twice: {', '.join(classes)}.")

    label_of = {class_name: label for label, class_name in enumerate(classes, 1)}
    file_names, sizes, images_of, labels, boxes, crowds = [], [], [], [], [], []
    for k, image_name in enumerate(names):
        xml = root / "Annotations" / f"{image_name}.xml"
        tree = _parse(xml)
        file_names.append(_image_file(root, image_name))
        sizes.append(_size(tree, root / file_names[k]))
        for element in tree.iter("object"):
            class_name = _class_name(element, xml)
            if class_name not in label_of:
                raise UserError(f"{xml}: " + unknown("class", class_name, classes))
            images_of.append(k)
            labels.append(label_of[class_name])
            boxes.append(_box(element, xml))
            crowds.append((element.findtext("difficult") or "0").strip() == "1")
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    images_of = np.array(images_of, np.int64)
    finite, left_out = finite_boxes(boxes, file_names, images_of)
    kept = np.flatnonzero(finite)
    data = Annotations(
        name,
        "voc",
        root,
        [{"id": label, "name": class_name} for class_name, label in label_of.items()],
        np.arange(1, len(names) + 1),
        np.array(sizes, np.int64).reshape(-1, 2),
        pack_strings(file_name.encode() for file_name in file_names),
        kept + 1,
        images_of[kept],
        np.array(labels, np.int64)[kept],
        boxes[kept],
        boxes[kept, 2:].prod(1),
        np.array(crowds, np.int8)[kept],
        pack_outlines([None] * len(kept)),
        left_out,
    )
    check_images_exist(data)
    warn_of_skipped(data)
    return data


def _listed(folder: Path, split: str, name: str) -> list[str]:
    """The images that the list of a split names; one that leaves the data set's folder is a `UserError`."""
    listing = folder / f"{split}.txt"
    if not stays_below(f"{split}.txt"):
        raise UserError(f"Data set {name}: split {split[:80]!r} leaves {folder}; name a list that lies there.")
    if not os.path.isfile(listing):  # False, too, where the path is too long, for which Path raises
        splits = sorted(p.stem for p in folder.glob("*.txt")) if os.path.isdir(folder) else []
        raise UserError(f"Data set {name}: {listing} does not exist. Splits there: {', '.join(splits) or 'none'}.")
    try:
        lines = read_whole(listing).decode(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{listing} cannot be read: {error.strerror}.") from error
    names = [line.split()[0] for line in lines if line.strip()]
    strange = next((n for n in names if not stays_below(n)), None)
    if strange is not None:
        raise UserError(f"{listing}: image {strange[:80]!r} leaves the data set's folder; name it without its path.")
    repeated = [n for n, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{listing}: image {min(repeated)} is listed twice; ids must be unique.")
    return names


def _all_classes(root: Path) -> list[str]:
    files = sorted((root / "Annotations").glob("*.xml"))
    return sorted({_class_name(element, xml) for xml in files for element in _parse(xml).iter("object")})


def _class_name(element: ElementTree.Element, xml: Path) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{xml}: an object has no name.")
    return name


def _parse(xml: Path) -> ElementTree.Element:
    try:
        return parse_xml(read_whole(xml, LARGEST))
    except OSError as error:
        raise UserError(f"{xml} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{xml} is not valid XML: {error}.") from error


def _image_file(root: Path, image_name: str) -> str:
    for suffix in (".jpg", ".jpeg", ".png", ".bmp"):
        if os.path.isfile(root / "JPEGImages" / (image_name + suffix)):
            return f"JPEGImages/{image_name}{suffix}"
    return f"JPEGImages/{image_name}.jpg"


def _size(tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    try:
        width, height = int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)
    except ValueError:
        width = height = 0
    if 0 < width <= SIDE and 0 < height <= SIDE:
        return width, height
    return image_size(image)


def _box(element: ElementTree.Element, xml: Path) -> tuple[float, float, float, float]:
    edges = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{key}")
        try:
            edges.append(float(text))
        except (TypeError, ValueError) as error:
            raise UserError(f"{xml}: an object's {key} is {text!r}, not a number.") from error
    x0, y0, x1, y1 = edges
    no_area = x1 <= x0 or y1 <= y0
    return (x0 - 1, y0 - 1, 0.0, 0.0) if no_area else (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1)
