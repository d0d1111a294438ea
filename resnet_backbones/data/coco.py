"""COCO's annotation files: boxes, polygons, RLE, iscrowd and category ids of any numbering."""

import json
import logging
from pathlib import Path

from ..errors import UserError
from ..paths import local_file
from .annotations import Annotations, check_images_exist, drop_unusable_boxes
from .masks import has_outline

logger = logging.getLogger(__name__)


def load_coco(name: str, root: Path, annotations: str) -> Annotations:
    """Read an instances file whose images lie in `root`.

    Raises `UserError` naming the file and the entry for JSON that is corrupt or lacks what detection needs, duplicate
    ids, references to nothing, and images that are not in `root`.
    """
    content = read_json(annotations)
    if not isinstance(content, dict):
        raise UserError(f"{annotations}: a COCO file is a mapping with images, annotations and categories.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{annotations}: the list {key!r} is missing; is it a COCO instances file?")
    images = [_checked_image(image, annotations) for image in content["images"]]
    categories = sorted((_checked_category(c, annotations) for c in content["categories"]), key=lambda c: c["id"])
    _check_unique("image", images, annotations)
    _check_unique("category", categories, annotations)
    _check_unique("annotation", content["annotations"], annotations)

    objects: dict[int, list[dict]] = {image["id"]: [] for image in images}
    category_ids = {category["id"] for category in categories}
    for o in content["annotations"]:
        o = _checked_object(o, annotations)
        if o["image_id"] not in objects:
            raise UserError(f"{annotations}: annotation {o['id']} is of image {o['image_id']}, which is not listed.")
        if o["category_id"] not in category_ids:
            raise UserError(
                f"{annotations}: annotation {o['id']} is of category {o['category_id']}, which is not listed."
            )
        objects[o["image_id"]].append(o)
    data = Annotations(name, "coco", Path(root), categories, images, objects)
    check_images_exist(data)
    drop_unusable_boxes(data)
    shapeless = [o["id"] for os in objects.values() for o in os if "segmentation" in o and not has_outline(o)]
    if shapeless:
        logger.warning(
            "%s: %d objects have a segmentation without a polygon; masks skip them (first annotation %s)",
            *(name, len(shapeless), shapeless[0]),
        )
    return data


def read_json(path: str) -> object:
    """The content of a JSON file. Raises `UserError` naming the file and where it is corrupt."""
    try:
        return json.loads(local_file(path, "annotation file").read_bytes())
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _checked_image(image: dict, source: str) -> dict:
    _check_keys("image", image, {"id": int, "file_name": str, "width": int, "height": int}, source)
    if image["width"] < 1 or image["height"] < 1:
        raise UserError(f"{source}: image {image['id']} is {image['width']} x {image['height']} pixels.")
    if Path(image["file_name"]).is_absolute() or ".." in Path(image["file_name"]).parts:
        raise UserError(f"{source}: image {image['id']} leaves the image folder: {image['file_name']}.")
    return image


def _checked_category(category: dict, source: str) -> dict:
    _check_keys("category", category, {"id": int, "name": str}, source)
    return category


def _checked_object(o: dict, source: str) -> dict:
    _check_keys("annotation", o, {"id": int, "image_id": int, "category_id": int, "bbox": list}, source)
    if len(o["bbox"]) != 4 or not all(isinstance(v, (int, float)) for v in o["bbox"]):
        raise UserError(f"{source}: annotation {o['id']} has bbox {o['bbox']}, not four numbers [x, y, width, height].")
    if o.get("iscrowd", 0) not in (0, 1) or not isinstance(o.get("area", 0), (int, float)):
        raise UserError(
            f"{source}: annotation {o['id']} has an iscrowd other than 0 and 1 or an area that is no number."
        )
    return {"iscrowd": 0, "area": max(o["bbox"][2], 0) * max(o["bbox"][3], 0), **o}


def _check_keys(kind: str, entry: dict, types: dict[str, type], source: str) -> None:
    for key, wanted in types.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(key), wanted):
            raise UserError(f"{source}: {kind} {str(entry)[:80]} has no {key!r} of type {wanted.__name__}.")


def _check_unique(kind: str, entries: list[dict], source: str) -> None:
    seen = set()
    for entry in entries:
        _check_keys(kind, entry, {"id": int}, source)
        if entry["id"] in seen:
            raise UserError(f"{source}: two entries have the {kind} id {entry['id']}; ids must be unique.")
        seen.add(entry["id"])
