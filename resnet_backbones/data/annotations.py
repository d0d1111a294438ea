"""A detection data set in memory, whatever its file format: COCO's records, checked, as a handful of arrays."""

import logging
import os
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from .masks import LARGEST
from .outlines import Outlines
from .packed import Rows

logger = logging.getLogger(__name__)

SIDE = 10**6  # pixels; no image file has more on a side
SMALLEST = 1e-6  # of an image's longer side; of a shorter box float32 makes none as it is scaled
MOST_CLASSES = 20_000  # COCO's figures take 100 kB of each and more


@dataclass
class Annotations:
    """Images and objects in arrays, which loader workers share; objects are sorted by image.

    `categories` are ordered: label k, from 1, is `categories[k - 1]`. Objects of `crowds` 1 are not trained on and
    neither reward nor cost in evaluation.
    """

    name: str
    format: str
    image_root: Path
    categories: list[dict]
    image_ids: np.ndarray  # (I,)
    sizes: np.ndarray  # (I, 2), width and height in pixels
    file_names: Rows  # I, UTF-8
    object_ids: np.ndarray  # (M,)
    images_of: np.ndarray  # (M,), index of each object's image
    labels: np.ndarray  # (M,), from 1
    boxes: np.ndarray  # (M, 4), x, y, width, height in pixels from the image's left upper corner
    areas: np.ndarray  # (M,)
    crowds: np.ndarray  # (M,), 0 or 1
    outlines: Outlines  # M
    left_out: tuple[int, str] = (0, "")  # boxes that are no coordinates: how many, and the first one's image

    def __len__(self) -> int:
        """The number of images."""
        return len(self.image_ids)

    @property
    def classes(self) -> list[str]:
        return [category["name"] for category in self.categories]

    @cached_property
    def starts(self) -> np.ndarray:
        """(I + 1,): the objects of image k are starts[k] … starts[k + 1] - 1."""
        return np.searchsorted(self.images_of, np.arange(len(self) + 1))

    @cached_property
    def corners(self) -> np.ndarray:
        """(M, 4): the boxes as x0, y0, x1, y1 inside their images."""
        size = np.tile(self.sizes[self.images_of], 2)
        ends = np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)
        return ends.clip(0, size)

    @cached_property
    def trainable(self) -> np.ndarray:
        """(M,), bool: no crowds, and something of the box, which is not of no area, lies inside the image."""
        return (self.crowds == 0) & self._has_area

    @property
    def _has_area(self) -> np.ndarray:
        return (self.corners[:, 2:] - self.corners[:, :2] > self._smallest).all(1)

    @property
    def _smallest(self) -> np.ndarray:
        """(M, 1): the side in pixels at which a box is one of no area."""
        return SMALLEST * self.sizes[self.images_of].max(1, keepdims=True)

    def file_name(self, k: int) -> str:
        """Of image k, below `image_root`."""
        return self.file_names[k].tobytes().decode()

    def image(self, k: int) -> dict:
        """Image k as COCO writes it."""
        width, height = self.sizes[k].tolist()
        return {"id": int(self.image_ids[k]), "file_name": self.file_name(k), "width": width, "height": height}

    def object(self, j: int) -> dict:
        """Object j as COCO writes it."""
        record = {
            "id": int(self.object_ids[j]),
            "image_id": int(self.image_ids[self.images_of[j]]),
            "category_id": self.categories[self.labels[j] - 1]["id"],
            "bbox": self.boxes[j].tolist(),
            "area": float(self.areas[j]),
            "iscrowd": int(self.crowds[j]),
        }
        outline = self.outlines[j]
        return record if outline is None else record | {"segmentation": outline}

    def objects(self, k: int) -> list[dict]:
        """The objects of image k."""
        return [self.object(j) for j in range(self.starts[k], self.starts[k + 1])]

    def as_coco(self) -> dict:
        """The content of a COCO annotation file."""
        return {
            "info": {"description": self.name},
            "images": [self.image(k) for k in range(len(self))],
            # Numbered anew: pycocotools takes an annotation of id 0 for "no match".
            "annotations": [self.object(j) | {"id": j + 1} for j in range(len(self.labels))],
            "categories": self.categories,
        }


def check_images_exist(data: Annotations) -> None:
    """Raise `UserError` that names the data set, folder and the first image that is not there, or cannot be seen."""
    present: dict[str, set[str]] = {}
    missing = []
    for k in range(len(data)):
        name = data.file_name(k)
        folder, _, file = name.rpartition("/")
        if folder not in present:  # one listing of a folder is far cheaper than a look at each file
            path = data.image_root / folder
            try:
                present[folder] = set(os.listdir(path)) if os.path.isdir(path) else set()
            except OSError as error:
                raise UserError(f"Data set {data.name}: {path} cannot be read: {error.strerror}.") from error
        if file not in present[folder]:
            missing.append(name)
    if missing:
        raise UserError(
            f"Data set {data.name}: {len(missing)} of {len(data)} images are missing from {data.image_root}, "
            f"first {missing[0]}."
        )


def warn_of_skipped(data: Annotations) -> None:
    """Count in the log the boxes that were or will be skipped, and the outlines that enclose nothing."""
    count, first = data.left_out
    if count:
        logger.warning("%s: skipped %d boxes that are not finite (first in %s)", data.name, count, first)
    flat = (data.boxes[:, 2:] <= data._smallest).any(1)
    outside = ~data._has_area & ~flat
    for reason, skipped in (("of no area", flat), ("outside the image", outside)):
        if skipped.any():
            first = data.file_name(data.images_of[skipped.argmax()])
            logger.warning("%s: skipped %d boxes %s (first in %s)", data.name, skipped.sum(), reason, first)
    shapeless = data.outlines.present & ~data.outlines.enclosing()
    if shapeless.any():
        logger.warning(
            "%s: %d objects have a segmentation without a polygon; masks skip them (first annotation %s)",
            *(data.name, shapeless.sum(), data.object_ids[shapeless.argmax()]),
        )


def check_classes(names: list[str], source: str) -> None:
    """Raise `UserError` for names that cannot be shown, and for more classes than can be scored."""
    strange = next((name for name in names if not can_be_shown(name)), None)
    if strange is not None:
        raise UserError(f"{source}: the class {strange[:80]!r} has control characters in its name.")
    if len(names) > MOST_CLASSES:
        raise UserError(f"{source}: there are {len(names)} classes; at most {MOST_CLASSES} can be scored.")


def can_be_shown(text: str) -> bool:
    """Whether it has neither control characters, which move a terminal's cursor, nor halves of characters."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def finite_boxes(boxes: np.ndarray, file_names: list[str], images_of: np.ndarray) -> tuple[np.ndarray, tuple[int, str]]:
    """(M,), bool: the boxes that are coordinates; and of the others what `Annotations.left_out` tells."""
    finite = (np.abs(boxes) < LARGEST).all(1)  # false for NaN, too
    first = "" if finite.all() else file_names[images_of[finite.argmin()]]
    return finite, (int(len(finite) - finite.sum()), first)
