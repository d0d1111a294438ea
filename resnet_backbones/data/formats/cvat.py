"""CVAT for images: one XML file with the boxes, polygons, ellipses and masks of all images."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ...errors import UserError, reason
from ..files import is_stray
from ..splits import Split
from .geometry import MAX_PIXELS, corners, ellipse, masked, outlined, rotated
from .guess import kind_of
from .listing import ImageFiles, stem_of
from .records import numbered
from .xml import number, read_xml, size_of

logger = logging.getLogger(__name__)

WITHOUT_AREA = {"points", "polyline", "cuboid", "skeleton"}


def read_cvat(
    root: Path, annotations: str | None, split: Split, classes: Sequence[str] | None = None
) -> tuple[Path, dict]:
    """The image root and records of the XML file `annotations`, or of the only one in `root`, which may have images/.

    Categories are the labels of the task, in its order. Objects marked `outside` are left out; so are points, lines,
    cuboids and skeletons, with a warning.

    Raises `UserError` naming the file if it is not "CVAT for images".
    """
    path = Path(annotations or root)
    path = find_cvat(path) if path.is_dir() else path
    tree = read_xml(path)
    if tree.tag != "annotations" or tree.find("track") is not None:
        raise UserError(f"{path} is not in the format 'CVAT for images'; export the task again in that format.")
    elements = tree.findall("image")
    for element in elements:
        if not element.get("name"):
            raise UserError(f"{path}: an image has no name.")
    images = ImageFiles(root)
    named = {images.find(stem_of(e.get("name")), e.get("name")) or e.get("name"): e for e in elements}
    if len(named) < len(elements):
        raise UserError(f"{path}: two images have the same name; export the task with its subfolders.")

    records, objects, skipped = [], [], Counter()
    for k, name in enumerate(split.choose(list(named)), 1):
        element = named[name]
        size = size_of(element.get("width"), element.get("height"))
        records.append({"id": k, "file_name": name, **size})
        for shape in element:
            if shape.tag in WITHOUT_AREA:
                skipped[shape.tag] += 1
            elif shape.tag in OUTLINES and shape.get("outside") != "1":
                where = f"{path}: a {shape.tag} of {name}"
                outline = OUTLINES[shape.tag](shape, size, where)
                objects.append({"image_id": k, "category_id": _label(shape, where), **outline})
    if skipped:
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        logger.warning("%s: skipped shapes without an area: %s", split.source, shown)
    labels = [e.findtext("name") or "" for e in tree.iterfind("./meta//label") if e.find("parent") is None]
    found = {s.get("label") for e in elements for s in e if s.tag in OUTLINES and s.get("label")}
    return root, numbered(records, objects, dict.fromkeys([*labels, *sorted(found)]))


def find_cvat(root: Path) -> Path:
    """The only CVAT file in `root`. Raises `UserError` if there is not exactly one."""
    found = [p for p in sorted(root.glob("*.xml")) if not is_stray(p.name) and kind_of(p) == "cvat"]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{root} must have one CVAT file, but has {names}; set `annotations` to the file.")
    return found[0]


def _label(shape: Element, where: str) -> str:
    if not shape.get("label"):
        raise UserError(f"{where} has no label.")
    return shape.get("label")


def _box(shape: Element, size: dict, where: str) -> dict:
    x0, y0, x1, y1 = _numbers(shape, ("xtl", "ytl", "xbr", "ybr"), where)
    degrees = number(shape.get("rotation", "0"), f"{where}: rotation")
    if degrees == 0:
        return {"bbox": [x0, y0, x1 - x0, y1 - y0]}
    return outlined([rotated(corners(x0, y0, x1, y1), ((x0 + x1) / 2, (y0 + y1) / 2), degrees)])


def _polygon(shape: Element, size: dict, where: str) -> dict:
    points = (shape.get("points") or "").replace(";", ",").split(",")
    polygon = [number(text, f"{where}: a point") for text in points]
    if len(polygon) % 2:
        raise UserError(f"{where} has an x without y in its points.")
    return outlined([polygon])


def _ellipse(shape: Element, size: dict, where: str) -> dict:
    x, y, radius_x, radius_y = _numbers(shape, ("cx", "cy", "rx", "ry"), where)
    degrees = number(shape.get("rotation", "0"), f"{where}: rotation")
    return outlined([rotated(ellipse(x, y, radius_x, radius_y), (x, y), degrees)])


def _mask(shape: Element, size: dict, where: str) -> dict:
    """Alternating runs of zeros and ones, along the rows of the box."""
    try:
        left, top, width, height = map(int, _numbers(shape, ("left", "top", "width", "height"), where))
        runs = [int(text) for text in (shape.get("rle") or "").split(",")]
        if min(width, height, *runs) < 0 or not sum(runs) == width * height <= MAX_PIXELS:
            raise ValueError(f"its runs do not fill {width} x {height} pixels")
        if not size:
            raise ValueError("the image has no width and height")
        crop = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
        return masked(crop, left, top, size["height"], size["width"])
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where} cannot be read: {reason(error)}.") from error


def _numbers(shape: Element, keys: Sequence[str], where: str) -> list[float]:
    return [number(shape.get(key), f"{where}: {key}") for key in keys]


OUTLINES = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
