"""The torch dataset over `Annotations`: an image at its native size, and its targets."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from .. import distributed
from ..errors import UserError
from .annotations import Annotations
from .images import read_image
from .masks import decode_mask
from .unreadable import Unreadable

MAX_OBJECTS = 10_000  # per image; detection heads compare each with every anchor
MAX_MASK_PIXELS = 2**32  # of all objects of an image


class DetectionDataset(Dataset):
    """Images (3, H, W), uint8 RGB, with targets for training, from one or several sets of the same classes.

    Item `index` is an image and a dict of `image_id`, `file_name` and in training `boxes` (M, 4), float xyxy in pixels,
    `labels` (M,) from 1 to K, and optionally `masks` (M, H, W), uint8. Targets do not include crowds and boxes without
    area. Item `(index, seed)` seeds the random augmentation, and its target has the `seed` for random draws of the
    detector. An image that cannot be read gives `Unreadable`.

    Args:
        sets: where the images come from.
        train: return targets, augment, and skip images without objects unless `keep_empty`.
        masks: targets have instance masks. Every object needs a segmentation; those with an empty mask are skipped.
        flip: probability of a horizontal flip.

    Raises `UserError` if the sets have different classes, no image is left, or an image has too many objects.
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
        self.flip = v2.RandomHorizontalFlip(flip)
        chosen = [
            np.unique(data.image_index[data.trainable]) if train and not keep_empty else np.arange(len(data))
            for data in sets
        ]
        self.set_index = np.repeat(np.arange(len(sets)), [len(images) for images in chosen])  # of each item
        self.images = np.concatenate(chosen)
        if not len(self.images):
            raise UserError(
                f"Dataset {', '.join(data.name for data in sets)} has no image"
                f"{' with an object; data.keep_empty=true would keep the others' if train else ''}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, dict] | Unreadable:
        index, seed = item if isinstance(item, tuple) else (item, None)
        data, k = self._find(index)
        try:
            pixels = read_image(data.path(k), tuple(data.sizes[k].tolist()))
        except UserError as error:
            return Unreadable(str(error))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        target = {"image_id": int(data.image_ids[k]), "file_name": str(data.path(k))}
        if not self.train:
            return image, target

        target |= self._objects(data, k)
        with distributed.seeded(seed):
            image, target = self.flip(tv_tensors.Image(image), target)
        if seed is not None:
            target["seed"] = seed
        return image.as_subclass(Tensor).contiguous(), {
            key: value.as_subclass(Tensor) if isinstance(value, Tensor) else value for key, value in target.items()
        }

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices of one epoch in random order."""
        return torch.randperm(len(self), generator=generator)

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
            masks = {j: mask for j in chosen if (mask := _mask(data, j, height, width)) is not None}
            chosen = np.array(list(masks), np.int64)
            stacked = np.stack(list(masks.values())) if masks else np.zeros((0, height, width), np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        boxes = torch.from_numpy(data.corners[chosen].astype(np.float32))
        target["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        target["labels"] = torch.from_numpy(data.labels[chosen].astype(np.int64))
        return target


def _mask(data: Annotations, j: int, height: int, width: int) -> np.ndarray | None:
    o = data.object(j)
    where = f"Dataset {data.name}: annotation {o['id']} of {data.file_name(data.image_index[j])}"
    if "segmentation" not in o:
        raise UserError(f"{where} has no segmentation, which mask_rcnn needs; choose detector.name=faster_rcnn.")
    try:
        return decode_mask(o, height, width)
    except Exception as error:  # pycocotools raises many kinds
        raise UserError(f"{where} has an invalid segmentation: {error}.") from error


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
