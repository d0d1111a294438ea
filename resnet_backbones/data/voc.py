"""PASCAL VOC devkits: `Annotations/*.xml`, `ImageSets/Main/SPLIT.txt`, `JPEGImages/`."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import DTDForbidden
from defusedxml.ElementTree import fromstring

from ..errors import UserError, unknown
from ..paths import read_whole, stays_below
from .annotations import MAX_SIDE, Annotations, check_classes, check_images_exist, finite_boxes, warn_skipped
from .images import image_size
from .ragged import pack_strings
from .segmentations import pack_segmentations

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


def load_voc(name: str, root: Path, split: str, classes: Sequence[str] | None = None) -> Annotations:
    """Read one split of a devkit. Labels follow the order of `classes`, by default all names in Annotations, sorted.

    VOC counts pixels from 1 and includes the last one: xmin … xmax becomes the edges xmin - 1 … xmax. Objects marked
    `difficult` become `iscrowd`: not trained on, ignored in evaluation, as in the devkit. A box with xmax <= xmin or
    ymax <= ymin has no area.

    Raises `UserError` naming the file if a list, XML or image is missing, XML is corrupt or a class is unknown.
    """
    root = Path(root)
    names = _listed(root / "ImageSets" / "Main", split, name)
    if classes is None:
        classes = _all_classes(root)
    check_classes(list(classes), f"Dataset {name}")
    if len(set(classes)) < len(classes):
        raise UserError(f"Dataset {name}: classes has a name twice: {', '.join(classes)}.")

    label_of = {class_name: label for label, class_name in enumerate(classes, 1)}
    file_names, sizes, image_index, labels, boxes, crowds = [], [], [], [], [], []
    for k, image_name in enumerate(names):
        xml = root / "Annotations" / f"{image_name}.xml"
        tree = _parse(xml)
        file_names.append(_image_file(root, image_name))
        sizes.append(_size(tree, root / file_names[k]))
        for element in tree.iter("object"):
            class_name = _class_name(element, xml)
            if class_name not in label_of:
                raise UserError(f"{xml}: " + unknown("class", class_name, classes))
            image_index.append(k)
            labels.append(label_of[class_name])
            boxes.append(_box(element, xml))
            crowds.append((element.findtext("difficult") or "0").strip() == "1")
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    image_index = np.array(image_index, np.int64)
    finite, skipped = finite_boxes(boxes, file_names, image_index)
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
        image_index[kept],
        np.array(labels, np.int64)[kept],
        boxes[kept],
        boxes[kept, 2:].prod(1),
        np.array(crowds, np.int8)[kept],
        pack_segmentations([None] * len(kept)),
        skipped,
    )
    check_images_exist(data)
    warn_skipped(data)
    return data


def _listed(folder: Path, split: str, name: str) -> list[str]:
    """The images in the list of a split. Raises `UserError` for one that leaves the dataset's folder."""
    listing = folder / f"{split}.txt"
    if not stays_below(f"{split}.txt"):
        raise UserError(f"Dataset {name}: split {split[:80]!r} leaves {folder}; name a list in it.")
    if not os.path.isfile(listing):  # False for a path that is too long; Path raises
        splits = sorted(p.stem for p in folder.glob("*.txt")) if os.path.isdir(folder) else []
        raise UserError(f"Dataset {name}: {listing} does not exist. Splits there: {', '.join(splits) or 'none'}.")
    try:
        lines = read_whole(listing).decode(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{listing} cannot be read: {error.strerror}.") from error
    names = [line.split()[0] for line in lines if line.strip()]
    bad = next((n for n in names if not stays_below(n)), None)
    if bad is not None:
        raise UserError(f"{listing}: image {bad[:80]!r} leaves the dataset's folder; name it without its path.")
    repeated = [n for n, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{listing}: image {min(repeated)} is listed twice; ids must be unique.")
    return names


def _all_classes(root: Path) -> list[str]:
    files = sorted((root / "Annotations").glob("*.xml"))
    return sorted({_class_name(element, xml) for xml in files for element in _parse(xml).iter("object")})


def _class_name(element: Element, xml: Path) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{xml}: an object has no name.")
    return name


def _parse(xml: Path) -> Element:
    try:
        return fromstring(read_whole(xml), forbid_dtd=True)
    except OSError as error:
        raise UserError(f"{xml} cannot be read: {error.strerror}.") from error
    except DTDForbidden as error:
        raise UserError(f"{xml} has a DOCTYPE, which can declare entities; remove it.") from error
    except (ParseError, ValueError, LookupError) as error:  # the latter two for encodings
        raise UserError(f"{xml} is not valid XML: {error}.") from error


def _image_file(root: Path, image_name: str) -> str:
    for suffix in (".jpg", ".jpeg", ".png", ".bmp"):
        if os.path.isfile(root / "JPEGImages" / (image_name + suffix)):
            return f"JPEGImages/{image_name}{suffix}"
    return f"JPEGImages/{image_name}.jpg"


def _size(tree: Element, image: Path) -> tuple[int, int]:
    try:
        width, height = int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)
    except ValueError:
        width = height = 0
    if 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE:
        return width, height
    return image_size(image)


def _box(element: Element, xml: Path) -> tuple[float, float, float, float]:
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
