"""The torch data set over `Annotations`: an image and its target at native size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..errors import UserError
from .annotations import Annotations
from .images import read_image
from .masks import decode_mask
from .samplers import seeded
from .transforms import build_transforms
from .unreadable import Unreadable

MOST_OBJECTS = 10_000  # of an image; heads compare each with every anchor
LARGEST_MASKS = 2**32  # pixels of all masks of an image


class DetectionDataset(Dataset):
    """Images (3, H, W), uint8 RGB, with targets for training, from one or several sets of the same classes.

    Item `index` is an image and a dict of `image_id`, `file_name` and in training `boxes` (M, 4) float xyxy in pixels,
    `labels` (M,) in 1 … K, and `masks` (M, H, W) uint8 where asked for. Crowds and boxes without area are left out of
    targets. Item `(index, seed)` fixes the random augmentation, and passes `seed` on for what the detector draws. An
    image that cannot be read gives `Unreadable` instead.

    Args:
        sets: what to draw from.
        train: give targets and augmentation, and leave out images without objects unless `keep_empty`.
        masks: with instance masks; an object without one is then an error, unless its mask is empty.
        flip: probability of a horizontal flip.

    Raises `UserError` where the sets' classes differ, no image is left, or an image has too many objects to train on.
    """

    def __init__(
        self,
        sets: Sequence[Annotations],
        *,
        train: bool,
        masks: bool = False,
        flip: float = 0.5,
        keep_empty: bool = False,
    ) -> None:
        for other in sets[1:]:
            check_same_classes(sets[0], other)
        for data in sets if train else ():
            check_object_counts(data)
        self.sets, self.classes, self.train, self.masks = list(sets), sets[0].classes, train, masks
        self.transforms = build_transforms(train, flip)
        chosen = [
            np.unique(data.images_of[data.trainable]) if train and not keep_empty else np.arange(len(data))
            for data in sets
        ]
        self.sets_of = np.repeat(np.arange(len(sets)), [len(images) for images in chosen])  # of each item
        self.images = np.concatenate(chosen)
        if not len(self.images):
            raise UserError(
                f"Data set {', '.join(data.name for data in sets)} has no image"
                f"{' with an object; data.keep_empty=true would keep the others' if train else ''}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, dict] | Unreadable:
        index, seed = item if isinstance(item, tuple) else (item, None)
        data, k = self._find(index)
        try:
            pixels = read_image(Path(self.place(index)), tuple(data.sizes[k].tolist()))
        except UserError as error:
            return Unreadable(str(error))
        image = tv_tensors.Image(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        target = {"image_id": int(data.image_ids[k]), "file_name": self.place(index)}
        if not self.train:
            return image.as_subclass(Tensor), target

        target |= self._objects(data, k)
        with seeded(seed):
            image, target = self.transforms(image, target)
        if seed is not None:
            target["seed"] = seed
        return image.as_subclass(Tensor).contiguous(), {
            key: value.as_subclass(Tensor) if isinstance(value, Tensor) else value for key, value in target.items()
        }

    def place(self, index: int) -> str:
        """The path of an item's image."""
        data, k = self._find(index)
        return str(data.image_root / data.file_name(k))

    def is_wide(self, index: int) -> bool:
        """Whether the image is wider than tall, known without reading it."""
        data, k = self._find(index)
        width, height = data.sizes[k]
        return bool(width > height)

    def _find(self, index: int) -> tuple[Annotations, int]:
        return self.sets[self.sets_of[index]], int(self.images[index])

    def _objects(self, data: Annotations, k: int) -> dict[str, Tensor]:
        width, height = data.sizes[k].tolist()
        chosen = np.flatnonzero(data.trainable[data.starts[k] : data.starts[k + 1]]) + data.starts[k]
        target = {}
        if self.masks:
            if len(chosen) * height * width > LARGEST_MASKS:
                raise UserError(
                    f"Data set {data.name}: {data.file_name(k)} has {len(chosen)} objects on {width} x {height} "
                    "pixels, whose masks take gigabytes; cut it into tiles."
                )
            masks = {j: mask for j in chosen if (mask := self._mask(data, j, height, width)) is not None}
            chosen = np.array(list(masks), np.int64)
            stacked = np.stack(list(masks.values())) if masks else np.zeros((0, height, width), np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        boxes = torch.from_numpy(data.corners[chosen].astype(np.float32))
        target["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        target["labels"] = torch.from_numpy(data.labels[chosen].astype(np.int64))
        return target

    def _mask(self, data: Annotations, j: int, height: int, width: int) -> np.ndarray | None:
        o, file_name = data.object(j), data.file_name(data.images_of[j])
        if "segmentation" not in o:
            raise UserError(
                f"Data set {data.name}: annotation {o['id']} of {file_name} has no segmentation, which "
                "mask_rcnn needs; choose detector.name=faster_rcnn."
            )
        try:
            return decode_mask(o, height, width)
        except Exception as error:
            raise UserError(
                f"Data set {data.name}: annotation {o['id']} of {file_name} has no usable mask: {error}."
            ) from error


def check_object_counts(data: Annotations) -> None:
    """Raise `UserError` naming an image with more objects than can be trained on."""
    counts = np.bincount(data.images_of[data.trainable], minlength=1)
    if counts.max() > MOST_OBJECTS:
        raise UserError(
            f"Data set {data.name}: {data.file_name(counts.argmax())} has {counts.max()} objects, more than the "
            f"{MOST_OBJECTS} that can be trained on; cut it into tiles."
        )


def check_same_classes(one: Annotations, other: Annotations) -> None:
    """Raise `UserError` where two data sets differ in class names or their order."""
    if one.classes != other.classes:
        raise UserError(
            f"Data sets {one.name} and {other.name} have different classes: {', '.join(one.classes)} and "
            f"{', '.join(other.classes)}; give both the same `classes`."
        )
