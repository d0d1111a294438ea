"""labelme: a JSON file beside each image, with polygons, rectangles, circles and masks."""

import base64
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError, reason
from ..json_file import read_json
from ..splits import Split
from .geometry import corners, ellipse, masked, outlined
from .listing import ImageFiles, annotated, as_posix
from .records import numbered

logger = logging.getLogger(__name__)

WITHOUT_AREA = {"point", "points", "line", "linestrip"}  # other kinds than labelme's own are polygons


def read_labelme(
    root: Path, annotations: str | None, split: Split, classes: Sequence[str] | None = None
) -> tuple[Path, dict]:
    """The image root and the records of the JSON files, at any depth, in `annotations` or in `root` itself.

    The image of a file has its name and any suffix; if there is none, `imagePath` names it. Images without a file are
    left out: nobody has labeled them. Categories are the labels found, sorted; without `classes`, those of all files.
    Shapes with the same label and `group_id` are one object. Points and lines are left out with a warning.

    Raises `UserError` naming the file if it is not labelme's.
    """
    folder = Path(annotations or root)
    images = ImageFiles(root)
    files = annotated(images, folder, ".json")
    chosen = split.choose(list(files))
    records: list[dict] = []
    objects: list[dict] = []
    skipped: Counter[str] = Counter()
    for image in chosen:
        path = folder / files[image]
        content = _read(path)
        if content is None:
            logger.warning("%s is left out: it has no shapes, unlike labelme's files", path)
            continue
        stated, stem = str(content.get("imagePath") or ""), os.path.splitext(files[image])[0]
        file_name = images.find(stem, stated) or as_posix(stated).rpartition("/")[2] or f"{stem}.jpg"
        size = {"width": content.get("imageWidth"), "height": content.get("imageHeight")}
        records.append({"id": len(records) + 1, "file_name": file_name, **size})
        try:
            found = _objects(content["shapes"], size, skipped)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: a shape is not as labelme writes it: {reason(error)}.") from error
        objects += [{"image_id": len(records), **o} for o in found]
    if skipped:
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        logger.warning("%s: skipped shapes without an area: %s", split.source, shown)
    labels = {o["category_id"] for o in objects}
    if classes is None:
        labels |= _labels_in([folder / files[image] for image in set(files) - set(chosen)])
    return root, numbered(records, objects, sorted(labels))


def _read(path: Path) -> dict | None:
    content = read_json(str(path))
    is_labelme = isinstance(content, dict) and isinstance(content.get("shapes"), list)
    return content if is_labelme else None


def _objects(shapes: list[dict], size: dict, skipped: Counter) -> list[dict]:
    """One object for each shape or group of shapes; what has no area is counted in `skipped`."""
    groups: dict[tuple, dict] = {}
    found = []
    for shape in shapes:
        outline = _outline(shape, size)
        if outline is None:
            skipped[str(shape.get("shape_type"))[:80]] += 1
            continue
        record = {"category_id": _label(shape), **outline}
        key = (record["category_id"], shape.get("group_id"))
        if key[1] is None or not isinstance(record["segmentation"], list):
            found.append(record)
        elif key in groups:
            groups[key] |= outlined(groups[key]["segmentation"] + record["segmentation"])
        else:
            groups[key] = record
            found.append(record)
    return found


def _label(shape: dict) -> str:
    label = "" if shape.get("label") is None else str(shape["label"]).strip()
    if not label:
        raise ValueError("it has no label")
    return label


def _outline(shape: dict, size: dict) -> dict | None:
    """`bbox`, `area` and `segmentation`; None for points and lines."""
    kind = shape.get("shape_type") or "polygon"
    if kind in WITHOUT_AREA:
        return None
    points = np.array(shape["points"], float).reshape(-1, 2)
    if kind == "mask":
        from ..images import decode_image  # slow to import

        left, top = points.min(0).round().astype(int).tolist()
        crop = decode_image(base64.b64decode(shape["mask"]), "of a mask", channels=1)[..., 0] > 0
        return masked(crop, left, top, size["height"], size["width"])
    if kind == "circle":
        (x, y), edge = points
        radius = float(np.hypot(*(edge - (x, y))))
        polygon = ellipse(x, y, radius, radius)
    elif kind == "rectangle":
        polygon = corners(*points.min(0).tolist(), *points.max(0).tolist())
    else:
        polygon = points.ravel().tolist()
    return outlined([polygon]) if polygon else None


def _labels_in(paths: list[Path]) -> set[str]:
    """The labels in files of other splits; what cannot be read is reported where its split is read."""
    labels = set()
    for path in paths:
        try:
            shapes = (_read(path) or {"shapes": []})["shapes"]
        except UserError:
            continue
        shapes = [o for o in shapes if isinstance(o, dict) and o.get("shape_type") not in WITHOUT_AREA]
        with contextlib.suppress(ValueError):
            labels |= set(map(_label, shapes))
    return labels
