"""A detection dataset in memory, whatever its file format: COCO's records, checked, in a few arrays."""

import logging
import os
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from .ragged import Ragged
from .segmentations import Segmentations

logger = logging.getLogger(__name__)

MAX_SIDE = 10**6  # pixels of an image; no image file has more on a side
MAX_COORDINATE = 1e8  # pixels; anything beyond is a broken box
MIN_SIDE = 1e-6  # of a box, as a fraction of its image's longer side; float32 makes less zero when it is resized


@dataclass
class Annotations:
    """I images and M objects in arrays, which loader workers share; objects are sorted by image.

    Label k, from 1, stands for `categories[k - 1]`. Objects with `crowds` 1 are not trained on and are ignored in
    evaluation.
    """

    name: str
    format: str
    image_root: Path
    categories: list[dict]
    image_ids: np.ndarray  # (I,)
    sizes: np.ndarray  # (I, 2), width and height in pixels
    file_names: Ragged  # I rows, UTF-8
    object_ids: np.ndarray  # (M,)
    image_index: np.ndarray  # (M,), the index of each object's image
    labels: np.ndarray  # (M,), from 1
    boxes: np.ndarray  # (M, 4), x, y, width, height in pixels
    areas: np.ndarray  # (M,)
    crowds: np.ndarray  # (M,), 0 or 1
    segmentations: Segmentations  # M
    skipped: tuple[int, str] = (0, "")  # broken boxes that are not in the arrays: their number, the first one's image

    def __len__(self) -> int:
        """The number of images."""
        return len(self.image_ids)

    @property
    def classes(self) -> list[str]:
        return [category["name"] for category in self.categories]

    @cached_property
    def starts(self) -> np.ndarray:
        """(I + 1,): the objects of image k are `starts[k]` to `starts[k + 1] - 1`."""
        return np.searchsorted(self.image_index, np.arange(len(self) + 1))

    @cached_property
    def corners(self) -> np.ndarray:
        """(M, 4): the boxes as x0, y0, x1, y1, clipped to their images."""
        size = np.tile(self.sizes[self.image_index], 2)
        ends = np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)
        return ends.clip(0, size)

    @cached_property
    def trainable(self) -> np.ndarray:
        """(M,), bool: not a crowd, and the part of the box inside the image has an area."""
        return (self.crowds == 0) & self.have_area(self.corners[:, 2:] - self.corners[:, :2])

    def have_area(self, sides: np.ndarray) -> np.ndarray:
        """(M,), bool: objects where both of `sides` (M, 2), in pixels, are long enough for a box."""
        return (sides > MIN_SIDE * self.sizes[self.image_index].max(1, keepdims=True)).all(1)

    def file_name(self, k: int) -> str:
        """Of image k, relative to `image_root`."""
        return self.file_names[k].tobytes().decode()

    def path(self, k: int) -> Path:
        """Of image k."""
        return self.image_root / self.file_name(k)

    def image(self, k: int) -> dict:
        """Image k as COCO writes it."""
        width, height = self.sizes[k].tolist()
        return {"id": int(self.image_ids[k]), "file_name": self.file_name(k), "width": width, "height": height}

    def object(self, j: int) -> dict:
        """Object j as COCO writes it."""
        record = {
            "id": int(self.object_ids[j]),
            "image_id": int(self.image_ids[self.image_index[j]]),
            "category_id": self.categories[self.labels[j] - 1]["id"],
            "bbox": self.boxes[j].tolist(),
            "area": float(self.areas[j]),
            "iscrowd": int(self.crowds[j]),
        }
        segmentation = self.segmentations[j]
        return record if segmentation is None else record | {"segmentation": segmentation}

    def objects(self, k: int) -> list[dict]:
        """The objects of image k."""
        return [self.object(j) for j in range(self.starts[k], self.starts[k + 1])]

    def as_coco(self) -> dict:
        """The content of a COCO annotation file."""
        return {
            "info": {"description": self.name},
            "images": [self.image(k) for k in range(len(self))],
            # New ids, from 1: pycocotools takes an annotation of id 0 for "no match".
            "annotations": [self.object(j) | {"id": j + 1} for j in range(len(self.labels))],
            "categories": self.categories,
        }


def check_images_exist(data: Annotations) -> None:
    """Raise `UserError` with the dataset, the folder and the first missing image."""
    present: dict[str, set[str]] = {}
    missing = []
    for k in range(len(data)):
        name = data.file_name(k)
        folder, _, file = name.rpartition("/")
        if folder not in present:  # listing a folder once is much faster than looking at each of its files
            path = data.image_root / folder
            try:
                present[folder] = set(os.listdir(path)) if os.path.isdir(path) else set()
            except OSError as error:
                raise UserError(f"Dataset {data.name}: {path} cannot be read: {error.strerror}.") from error
        if file not in present[folder]:
            missing.append(name)
    if missing:
        raise UserError(
            f"Dataset {data.name}: {len(missing)} of {len(data)} images are missing from {data.image_root}, "
            f"first {missing[0]}."
        )


def warn_skipped(data: Annotations) -> None:
    """Log how many boxes are skipped, and how many segmentations no mask can be drawn from."""
    count, first = data.skipped
    if count:
        logger.warning("%s: skipped %d boxes that are not finite (first in %s)", data.name, count, first)
    flat = ~data.have_area(data.boxes[:, 2:])
    outside = ~data.have_area(data.corners[:, 2:] - data.corners[:, :2]) & ~flat
    for reason, skipped in (("without area", flat), ("outside the image", outside)):
        if skipped.any():
            first = data.file_name(data.image_index[skipped.argmax()])
            logger.warning("%s: skipped %d boxes %s (first in %s)", data.name, skipped.sum(), reason, first)
    shapeless = data.segmentations.present & ~data.segmentations.drawable()
    if shapeless.any():
        logger.warning(
            "%s: %d objects have a segmentation without a polygon; masks skip them (first annotation %s)",
            *(data.name, shapeless.sum(), data.object_ids[shapeless.argmax()]),
        )


def check_classes(names: list[str], source: str) -> None:
    """Raise `UserError` for names that cannot be printed."""
    bad = next((name for name in names if not is_printable(name)), None)
    if bad is not None:
        raise UserError(f"{source}: the class name {bad[:80]!r} has control characters.")


def is_printable(text: str) -> bool:
    """Whether it has neither control characters, which move a terminal's cursor, nor surrogates."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def finite_boxes(
    boxes: np.ndarray, file_names: list[str], image_index: np.ndarray
) -> tuple[np.ndarray, tuple[int, str]]:
    """(M,), bool: the boxes with real coordinates; and `Annotations.skipped` for the others."""
    finite = (np.abs(boxes) < MAX_COORDINATE).all(1)  # False for NaN, too
    first = "" if finite.all() else file_names[image_index[finite.argmin()]]
    return finite, (int(len(finite) - finite.sum()), first)
