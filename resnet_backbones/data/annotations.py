"""A detection data set in memory, whatever its file format: COCO's records, checked."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .masks import is_coordinate

logger = logging.getLogger(__name__)


@dataclass
class Annotations:
    """Images and objects as COCO writes them.

    `images` holds {"id", "file_name", "width", "height"} and `objects[image_id]` {"id", "image_id", "category_id",
    "bbox": [x, y, w, h] in pixels from the image's left upper corner, "area", "iscrowd", and "segmentation" where
    there are masks}. Objects of `iscrowd` 1 are not trained on and neither reward nor cost in evaluation.
    `categories` are ordered: label k, from 1, is `categories[k - 1]`.
    """

    name: str
    format: str
    image_root: Path
    categories: list[dict]
    images: list[dict]
    objects: dict[int, list[dict]] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        return [category["name"] for category in self.categories]

    def as_coco(self) -> dict:
        """The content of a COCO annotation file."""
        return {
            "info": {"description": self.name},
            "images": self.images,
            # Numbered anew: pycocotools takes an annotation of id 0 for "no match".
            "annotations": [
                {**o, "id": k} for k, o in enumerate((o for os in self.objects.values() for o in os), start=1)
            ],
            "categories": self.categories,
        }


def check_images_exist(data: Annotations) -> None:
    """Raise `UserError` that names the data set, the folder and the first image that is not there."""
    present: dict[Path, set[str]] = {}
    missing = []
    for image in data.images:
        path = data.image_root / image["file_name"]
        if path.parent not in present:  # one listing of a folder is far cheaper than a look at each file
            present[path.parent] = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
        if path.name not in present[path.parent]:
            missing.append(image["file_name"])
    if missing:
        raise UserError(
            f"Data set {data.name}: {len(missing)} of {len(data.images)} images are missing from {data.image_root}, "
            f"first {missing[0]}."
        )


def drop_unusable_boxes(data: Annotations) -> None:
    """Drop the boxes that are not finite, and count in the log those that training will skip (`trainable_box`)."""
    skipped: Counter[str] = Counter()
    first = {}
    sizes = {image["id"]: image for image in data.images}
    for image_id, objects in data.objects.items():
        image = sizes[image_id]
        for o in objects:
            if all(map(is_coordinate, o["bbox"])):
                if trainable_box(o["bbox"], image["width"], image["height"]):
                    continue
                reason = "of no area" if min(o["bbox"][2:]) <= 0 else "outside the image"
            else:
                reason = "that are not finite"
            skipped[reason] += 1
            first.setdefault(reason, image["file_name"])
        data.objects[image_id] = [o for o in objects if all(map(is_coordinate, o["bbox"]))]
    for reason, count in skipped.items():
        logger.warning("%s: skipped %d boxes %s (first in %s)", data.name, count, reason, first[reason])


def trainable_box(bbox: list[float], width: int, height: int) -> list[float] | None:
    """[x, y, w, h] as [x0, y0, x1, y1] inside the image, or None where nothing of it is left."""
    x, y, w, h = bbox
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return [x0, y0, x1, y1] if w > 0 and h > 0 and x1 > x0 and y1 > y0 else None
