"""YOLO: a text file of boxes or polygons for each image, and `data.yaml` or a list of class names."""

import logging
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..splits import Split
from ..text import read_text
from .geometry import outlined
from .listing import ImageFiles
from .yolo_settings import find_settings, images_of, listed_names, names_of, read_settings, sources_of

logger = logging.getLogger(__name__)


def read_yolo(
    root: Path, annotations: str | None, split: Split, classes: Sequence[str] | None = None
) -> tuple[Path, dict]:
    """The image root and records of a folder with `data.yaml`, or with `classes.txt` or `obj.names` as in darknet.

    The labels of images/a.jpg are in labels/a.txt, those of others beside them; an image without labels has no objects.
    A line is a box, "class x y width height", or a polygon, "class x y x y x y …", relative to the size of the image
    when upright. A sixth number of a box is a detector's confidence, which is ignored with a warning.

    Args:
        root: the folder of the images, and of `data.yaml` unless `annotations` says where that is.
        annotations: `data.yaml`, or the folder of the label files.
        split: a key of `data.yaml`, such as `train` or `val`, comes before a list or folder in `root`.
        classes: not used; the files list the names.

    Raises `UserError` naming the file and line.
    """
    from ..images import image_size  # slow to import

    labels = Path(annotations) if annotations and os.path.isdir(annotations) else None
    file = Path(annotations) if annotations and not labels else find_settings(root)
    settings = read_settings(file) if file else {}
    names = names_of(settings, file) if file else listed_names(root, labels)
    if settings.get("path") and os.path.isdir(file.parent / settings["path"]):
        root = file.parent / settings["path"]
    sources = sources_of(settings, file, root, split.name) if file else []
    root, chosen = images_of(sources, root) if sources else (root, split.choose(ImageFiles(root).names))

    images, objects, confidences, unlabeled = [], [], [], 0
    for k, image in enumerate(chosen, 1):
        images.append({"id": k, "file_name": image})
        try:
            width, height = image_size(root / image)
        except UserError:  # the loader counts it as unreadable
            continue
        images[-1] |= {"width": width, "height": height}
        label_file = next(filter(os.path.isfile, label_files(root, image, labels)), None)
        unlabeled += label_file is None
        for category, outline, has_confidence in read_labels(label_file, names, "kpt_shape" in settings):
            o = {"id": len(objects) + 1, "image_id": k, "category_id": category + 1}
            objects.append(o | in_pixels(outline, width, height))
            confidences += [label_file] if has_confidence else []
    if unlabeled:
        logger.info("%s: %d of %d images have no label file, and so no objects", split.source, unlabeled, len(images))
    if confidences:
        shown = (*(split.source, len(confidences), confidences[0]),)
        logger.warning("%s: %d boxes have a confidence, as predictions do; it is ignored (first in %s)", *shown)
    categories = [{"id": number + 1, "name": name} for number, name in names.items()]
    return root, {"images": images, "annotations": objects, "categories": categories}


def label_files(root: Path, image: str, labels: Path | None) -> list[Path]:
    """Where the labels of an image may be."""
    stem = posixpath.splitext(image)[0]
    if labels:
        return [labels / f"{stem}.txt", labels / f"{stem.rpartition('/')[2]}.txt"]
    beside = root.absolute() / f"{stem}.txt"
    before, images, after = str(beside).rpartition("/images/")
    return [*([Path(f"{before}/labels/{after}")] if images else []), beside]


def read_labels(path: Path | None, names: dict[int, str], boxes_only: bool) -> list[tuple[int, list[float], bool]]:
    """The class, the box of four numbers or polygon of more, and whether there was a confidence, of each object."""
    found = []
    for number, line in enumerate(read_text(path, "label file").splitlines() if path else (), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            category, *values = map(float, line.split())
        except ValueError as error:
            raise UserError(f"{where} is {line[:80]!r}, not a class and coordinates, which are numbers.") from error
        if category not in names:
            raise UserError(
                f"{where} is of class {category:g}, but there are names for 0 to {max(names, default=-1)} only."
            )
        if boxes_only:  # key points follow
            values = values[:4]
        is_box = len(values) in (4, 5)
        if not is_box and (len(values) < 6 or len(values) % 2):
            raise UserError(
                f"{where} has {len(values)} numbers after the class, neither the four of a box nor the pairs of a "
                "polygon of three corners or more."
            )
        found.append((int(category), values[:4] if is_box else values, len(values) == 5))
    return found


def in_pixels(outline: list[float], width: int, height: int) -> dict:
    """`bbox`, and for a polygon `area` and `segmentation`, of relative coordinates."""
    if len(outline) == 4:
        x, y, w, h = outline
        return {"bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
    polygon = [value * (height if k % 2 else width) for k, value in enumerate(outline)]
    return outlined([polygon])
