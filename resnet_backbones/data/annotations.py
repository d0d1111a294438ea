"""A detection dataset in memory, whatever its file format: COCO's records, cleaned, in a few arrays."""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError, errors_about
from .files import FolderTree, missing_files
from .ragged import Ragged
from .segmentations import Segmentations

logger = logging.getLogger(__name__)

MIN_SIDE = 1e-6  # of a box, as a fraction of its image's longer side; less becomes zero in float32 when resized


class Repair(NamedTuple):
    """Something that was repaired or left out: what it is, how often it occurs, and where first."""

    what: str
    count: int
    first: str


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
    image_ids: np.ndarray  # (I,), integers or text
    sizes: np.ndarray  # (I, 2), width and height in pixels; 0 if unknown
    file_names: Ragged  # I rows, UTF-8
    image_index: np.ndarray  # (M,), the index of each object's image
    labels: np.ndarray  # (M,), from 1
    boxes: np.ndarray  # (M, 4), x, y, width, height in pixels
    areas: np.ndarray  # (M,)
    crowds: np.ndarray  # (M,), 0 or 1
    segmentations: Segmentations  # M
    is_labeled: bool = True  # False for a test set, whose objects are not published
    repairs: tuple[Repair, ...] = ()

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
        return (self.crowds == 0) & self.inside

    @cached_property
    def flat(self) -> np.ndarray:
        """(M,), bool: boxes without area."""
        return ~self._have_area(self.boxes[:, 2:])

    @cached_property
    def inside(self) -> np.ndarray:
        """(M,), bool: boxes at least partly inside the image."""
        return self._have_area(self.corners[:, 2:] - self.corners[:, :2])

    def _have_area(self, sides: np.ndarray) -> np.ndarray:
        return (sides > MIN_SIDE * self.sizes[self.image_index].max(1, keepdims=True)).all(1)

    def image_id(self, k: int) -> Hashable:
        """The id of image k, as in its file."""
        return self.image_ids[k : k + 1].tolist()[0]

    def file_name(self, k: int) -> str:
        """The file name of image k, relative to `image_root`."""
        return self.file_names[k].tobytes().decode()

    def path(self, k: int) -> Path:
        """The path of image k."""
        return self.image_root / self.file_name(k)

    def image(self, k: int) -> dict:
        """Image k as COCO writes it."""
        width, height = self.sizes[k].tolist()
        return {"id": self.image_id(k), "file_name": self.file_name(k), "width": width, "height": height}

    def segmentation(self, j: int) -> list | dict | None:
        """The segmentation of object j as COCO writes it; None if it has none."""
        return self.segmentations.as_coco(j, *self.sizes[self.image_index[j]].tolist())

    def all_segmentations(self) -> list[list | dict | None]:
        """`segmentation` of every object, much faster than one by one."""
        return self.segmentations.all_as_coco(self.sizes[self.image_index])

    def object(self, j: int) -> dict:
        """Object j as COCO writes it. Ids count from 1: pycocotools takes an object of id 0 for "no match"."""
        record = {
            "id": j + 1,
            "image_id": self.image_id(self.image_index[j]),
            "category_id": self.categories[self.labels[j] - 1]["id"],
            "bbox": self.boxes[j].tolist(),
            "area": float(self.areas[j]),
            "iscrowd": int(self.crowds[j]),
        }
        segmentation = self.segmentation(j)
        return record if segmentation is None else record | {"segmentation": segmentation}

    def objects(self, k: int) -> list[dict]:
        """The objects of image k."""
        return [self.object(j) for j in range(self.starts[k], self.starts[k + 1])]

    def as_coco(self) -> dict:
        """The content of a COCO annotation file."""
        return {
            "info": {"description": self.name},
            "images": [self.image(k) for k in range(len(self))],
            "annotations": [self.object(j) for j in range(len(self.labels))],
            "categories": self.categories,
        }


def check_images_exist(data: Annotations) -> None:
    """Raise `UserError` with the dataset, the folder, the first missing image and what is there."""
    with errors_about(f"Dataset {data.name}"):
        missing = missing_files(data.image_root, [data.file_name(k) for k in range(len(data))])
    if missing:
        there = FolderTree(data.image_root).names()
        raise UserError(
            f"Dataset {data.name}: {len(missing)} of {len(data)} images are missing from {data.image_root}, "
            f"first {missing[0]}; it has {f'{len(there)} files, first {there[0]}' if there else 'no files'}."
        )


def report(data: Annotations) -> None:
    """Log once what was repaired, and which boxes training skips."""
    for what, count, first in data.repairs:
        logger.warning("%s: %d x %s (first %s)", data.name, count, what, first)
    outside = ~data.inside & ~data.flat & data.sizes[data.image_index].all(1)  # of images of a known size
    for what, skipped in (("without area", data.flat), ("outside the image", outside)):
        if skipped.any():
            first = data.file_name(data.image_index[skipped.argmax()])
            logger.warning("%s: %d boxes %s, skipped in training (first in %s)", data.name, skipped.sum(), what, first)
