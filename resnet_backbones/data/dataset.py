"""The torch dataset over `Annotations`: an image at its native size, and its targets."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..distributed import seeded
from ..errors import UserError
from .annotations import Annotations
from .detection_augmentation import paste_objects, train_transform
from .images import read_image
from .masks import decode_mask
from .samplers import repeat_factors, repeated_order
from .unreadable import Unreadable

MAX_OBJECTS = 10_000  # per image; detection heads compare each with every anchor
MAX_MASK_PIXELS = 2**32  # of all objects of an image


class DetectionDataset(Dataset):
    """Images (C, H, W), uint8, with targets for training, from one or several sets of the same classes.

    Item `index` is an image and a dict of `image_id`, `file_name` and in training `boxes` (M, 4), float xyxy in pixels,
    `labels` (M,) from 1 to K, and optionally `masks` (M, H, W), uint8. Targets do not include crowds and boxes without
    area. Item `(index, seed)` seeds the random augmentation, and its target has the `seed` for random draws of the
    detector. An image that cannot be read gives `Unreadable`.

    Args:
        sets: where the images come from.
        train: return targets, augment, and skip images without objects unless `keep_empty`.
        masks: targets have instance masks. Every object needs a segmentation; those with an empty mask are skipped.
        channels: C; 3 is RGB, and `decode_image` says what other numbers are.
        copy_paste: probability that objects of another image are pasted; with `masks` only.
        repeat_threshold: repeat images of rare classes in an epoch; the threshold of `repeat_factors`.
        augmentation: the arguments of `train_transform`, such as `flip`.

    Raises `UserError` if the sets have different classes, no image is left, or an image has too many objects.
    """

    def __init__(
        self,
        sets: Sequence[Annotations],
        *,
        train: bool,
        masks: bool = False,
        keep_empty: bool = False,
        channels: int = 3,
        copy_paste: float = 0.0,
        repeat_threshold: float | None = None,
        **augmentation,
    ) -> None:
        for other in sets[1:]:
            check_same_classes(sets[0], other)
        for data in sets if train else ():
            check_object_counts(data)
        self.sets, self.classes, self.train, self.masks = list(sets), sets[0].classes, train, masks
        self.channels, self.copy_paste, self.transform = channels, copy_paste, train_transform(**augmentation)
        if train and not any(has_objects(data, masks) for data in sets):
            raise UserError(nothing_to_learn(sets, masks))
        chosen = [
            np.unique(data.image_index[learnable(data, masks)]) if train and not keep_empty else np.arange(len(data))
            for data in sets
        ]
        self.set_index = np.repeat(np.arange(len(sets)), [len(images) for images in chosen])  # of each item
        self.images = np.concatenate(chosen)
        if not len(self.images):
            raise UserError(f"Dataset {', '.join(data.name for data in sets)} has no image.")
        self.repeat_factors = None
        if repeat_threshold is not None:
            self.repeat_factors = repeat_factors(*self._items_and_labels(), len(self), repeat_threshold)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, dict] | Unreadable:
        index, seed = item if isinstance(item, tuple) else (item, None)
        sample = self._read(index)
        if isinstance(sample, Unreadable) or not self.train:
            return sample
        with seeded(seed):
            image, target = self._augment(*sample)
        if seed is not None:
            target["seed"] = seed
        return image.contiguous(), target

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices of one epoch in random order."""
        if self.repeat_factors is None:
            return torch.randperm(len(self), generator=generator)
        return repeated_order(self.repeat_factors, generator)

    def path(self, index: int) -> str:
        """Where an item's image is."""
        data, k = self._find(index)
        return str(data.path(k))

    def is_wide(self, index: int) -> bool:
        """Whether the image is wider than tall, according to its annotation."""
        data, k = self._find(index)
        width, height = data.sizes[k]
        return bool(width > height)

    @staticmethod
    def collate(samples: list) -> tuple[list[Tensor], list[dict]]:
        """Lists of images and targets, since their sizes differ."""
        images, targets = zip(*samples, strict=True)
        return list(images), list(targets)

    def _find(self, index: int) -> tuple[Annotations, int]:
        return self.sets[self.set_index[index]], int(self.images[index])

    def _read(self, index: int) -> tuple[Tensor, dict] | Unreadable:
        data, k = self._find(index)
        path = data.path(k)
        try:
            pixels = read_image(path, tuple(data.sizes[k].tolist()), self.channels)
        except UserError as error:
            return Unreadable(str(error))
        target = {"image_id": data.image_id(k), "file_name": str(path)}
        if self.train:
            target |= self._objects(data, k)
        return torch.from_numpy(pixels).permute(2, 0, 1), target

    def _augment(self, image: Tensor, target: dict) -> tuple[Tensor, dict]:
        image, target = self.transform(image, target)
        if self.copy_paste and torch.rand(1) < self.copy_paste:
            other = self._read(int(torch.randint(len(self), (1,))))
            if not isinstance(other, Unreadable):
                return paste_objects(image, target, *self.transform(*other))
        return image, target

    def _items_and_labels(self) -> tuple[Tensor, Tensor]:
        """(M,) each: the item and the label of every object to train on."""
        items, labels = [], []
        for k, data in enumerate(self.sets):
            rows, of_set = learnable(data, self.masks), np.flatnonzero(self.set_index == k)
            items.append(of_set[np.searchsorted(self.images[of_set], data.image_index[rows])])
            labels.append(data.labels[rows])
        return torch.from_numpy(np.concatenate(items)), torch.from_numpy(np.concatenate(labels).astype(np.int64))

    def _objects(self, data: Annotations, k: int) -> dict[str, Tensor]:
        width, height = data.sizes[k].tolist()
        chosen = np.flatnonzero(data.trainable[data.starts[k] : data.starts[k + 1]]) + data.starts[k]
        target = {}
        if self.masks:
            if len(chosen) * height * width > MAX_MASK_PIXELS:
                raise UserError(
                    f"Dataset {data.name}: {data.file_name(k)} has {len(chosen)} objects on {width} x {height} "
                    "pixels, whose masks take gigabytes; cut it into tiles."
                )
            decoded = {j: decode_mask(data.segmentation(j), height, width) for j in chosen}
            masks = {j: mask for j, mask in decoded.items() if mask is not None}
            chosen = np.array(list(masks), np.int64)
            stacked = np.stack(list(masks.values())) if masks else np.zeros((0, height, width), np.uint8)
            target["masks"] = torch.from_numpy(stacked)
        target["boxes"] = torch.from_numpy(data.corners[chosen].astype(np.float32))
        target["labels"] = torch.from_numpy(data.labels[chosen].astype(np.int64))
        return target


def learnable(data: Annotations, masks: bool) -> np.ndarray:
    """(M,), bool: the objects to train on, boxes inside the image, with `masks` those that have one."""
    return data.trainable & data.segmentations.present if masks else data.trainable


def has_objects(data: Annotations, masks: bool) -> bool:
    """Whether there is an object to train on; a mask can be empty, for instance outside the image."""
    rows = np.flatnonzero(learnable(data, masks))
    if not masks:
        return len(rows) > 0
    return any(
        decode_mask(data.segmentation(j), *data.sizes[data.image_index[j]].tolist()[::-1]) is not None for j in rows
    )


def nothing_to_learn(sets: Sequence[Annotations], masks: bool) -> str:
    """The message for datasets without an object to train on."""
    names, count = ", ".join(data.name for data in sets), sum(len(data.labels) for data in sets)
    if not count:
        lost = "; ".join(f"{r.count} {r.what}" for data in sets for r in data.repairs if r.what.endswith("left out"))
        images = f"its {sum(map(len, sets))} images have no objects"
        return f"Dataset {names} has nothing to train on: {images}{f' ({lost})' if lost else ''}."
    if masks and any(data.trainable.any() for data in sets):
        return (
            f"Dataset {names} has nothing to train masks on: no mask can be drawn for any of its {count} objects; "
            "choose detector.name=faster_rcnn, or give them segmentations."
        )
    return f"Dataset {names} has nothing to train on: all of its {count} objects are crowds, flat or outside the image."


def check_object_counts(data: Annotations) -> None:
    """Raise `UserError` naming an image with more objects than a detector can be trained on."""
    counts = np.bincount(data.image_index[data.trainable], minlength=1)
    if counts.max() > MAX_OBJECTS:
        raise UserError(
            f"Dataset {data.name}: {data.file_name(counts.argmax())} has {counts.max()} objects, more than the limit "
            f"of {MAX_OBJECTS} for training; cut it into tiles."
        )


def check_same_classes(one: Annotations, other: Annotations) -> None:
    """Raise `UserError` if two datasets differ in class names or their order."""
    if one.classes != other.classes:
        raise UserError(
            f"Datasets {one.name} and {other.name} have different classes: {', '.join(one.classes)} and "
            f"{', '.join(other.classes)}; set the same `classes` for both."
        )
