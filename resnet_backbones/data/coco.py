"""COCO's annotation files: boxes, polygons, RLE, iscrowd and category ids of any numbering."""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from ..errors import UserError
from ..paths import local_file
from .annotations import Annotations, check_images_exist, drop_unusable_boxes


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
    return data


def read_json(path: str) -> object:
    """The content of a JSON file. Raises `UserError` naming the file and where it is corrupt."""
    try:
        return json.loads(local_file(path, "annotation file").read_bytes())
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid JSON: {error}") from error


def decode_mask(o: dict, height: int, width: int) -> np.ndarray | None:
    """The mask (height, width), uint8, of an annotation's polygons or RLE; None where it has none or an empty one.

    Raises `ValueError` where the segmentation does not fit the image.
    """
    segmentation = o.get("segmentation")
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", [])) != [height, width]:
            raise ValueError(f"its RLE is of size {segmentation.get('size')}, the image of {[height, width]}")
        counts = segmentation.get("counts")
        if not counts:
            raise ValueError("its RLE has no counts")
        if isinstance(counts, (list, str)):
            counts = rle_counts(counts) if isinstance(counts, str) else counts
            if sum(counts) != height * width or min(counts, default=0) < 0:
                raise ValueError(f"its RLE counts sum to {sum(counts)}, not to {height} x {width}")
            segmentation = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        mask = rle.decode(segmentation)
    else:
        # Fewer than three corners enclose nothing, and pycocotools would take four numbers for a box.
        polygons = [p for p in segmentation or [] if _is_polygon(p)]
        if not polygons:
            return None
        mask = rle.decode(rle.merge(rle.frPyObjects(polygons, height, width)))
    return mask if mask.any() else None


def has_outline(o: dict) -> bool:
    """Whether an annotation has a segmentation that encloses anything: an RLE, or a polygon of three corners."""
    segmentation = o.get("segmentation")
    return isinstance(segmentation, dict) or any(_is_polygon(p) for p in segmentation or [])


def _is_polygon(points: list) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0


def rle_counts(text: str) -> list[int]:
    """The run lengths of COCO's compressed RLE; pycocotools itself reads past the end of a string cut short.

    Each number is written in 5-bit groups, lowest first, as characters from "0" on whose sixth bit says that more
    follow; from the third on it is the difference to the number two before. Raises `ValueError` for anything else.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError(f"its RLE holds {character!r}")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its RLE is cut short")
    return counts


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
