"""The torch data set over `Annotations`: an image and its target at native size."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..errors import UserError
from .annotations import Annotations, trainable_box
from .images import read_image
from .masks import decode_mask
from .samplers import seeded
from .transforms import build_transforms


class DetectionDataset(Dataset):
    """Images (3, H, W), uint8 RGB, with targets for training, from one or several sets of the same classes.

    Item `index`, or `(index, seed)` to fix its random augmentation, is an image and a dict of `image_id`,
    `file_name` and in training `boxes` (M, 4) float xyxy in pixels, `labels` (M,) in 1 … K, and `masks` (M, H, W)
    uint8 where asked for. Crowds and boxes without area are left out of targets.

    Args:
        sets: what to draw from.
        train: give targets and augmentation, and leave out images without objects unless `keep_empty`.
        masks: with instance masks; an object without one is then an error, unless its mask is empty.
        flip: probability of a horizontal flip.

    Raises `UserError` where the sets' classes differ or no image is left.
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
        self.sets, self.classes, self.train, self.masks = list(sets), sets[0].classes, train, masks
        self.label_of = [{c["id"]: k for k, c in enumerate(data.categories, 1)} for data in sets]
        self.transforms = build_transforms(train, flip)
        self.records = [
            (s, image)
            for s, data in enumerate(sets)
            for image in data.images
            if not train or keep_empty or _trainable(data, image)
        ]
        if not self.records:
            raise UserError(
                f"Data set {', '.join(data.name for data in sets)} has no image"
                f"{' with an object; data.keep_empty=true would keep the others' if train else ''}."
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, dict]:
        index, seed = item if isinstance(item, tuple) else (item, None)
        s, record = self.records[index]
        data = self.sets[s]
        path = data.image_root / record["file_name"]
        pixels = read_image(path, (record["width"], record["height"]))
        image = tv_tensors.Image(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        target = {"image_id": record["id"], "file_name": str(path)}
        if not self.train:
            return image.as_subclass(Tensor), target

        target |= self._objects(s, record)
        with seeded(seed):
            image, target = self.transforms(image, target)
        return image.as_subclass(Tensor).contiguous(), {
            key: value.as_subclass(Tensor) if isinstance(value, Tensor) else value for key, value in target.items()
        }

    def _objects(self, s: int, record: dict) -> dict[str, Tensor]:
        data, (width, height) = self.sets[s], (record["width"], record["height"])
        boxes, labels, masks = [], [], []
        for o in _trainable(data, record):
            if self.masks:
                mask = self._mask(data, o, record)
                if mask is None:
                    continue
                masks.append(mask)
            boxes.append(trainable_box(o["bbox"], width, height))
            labels.append(self.label_of[s][o["category_id"]])
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                format="XYXY",
                canvas_size=(height, width),
            ),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        if self.masks:
            stacked = np.stack(masks) if masks else np.zeros((0, height, width), np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        return target

    def _mask(self, data: Annotations, o: dict, record: dict) -> np.ndarray | None:
        if "segmentation" not in o:
            raise UserError(
                f"Data set {data.name}: annotation {o['id']} of {record['file_name']} has no segmentation, which "
                "mask_rcnn needs; choose detector.name=faster_rcnn."
            )
        try:
            return decode_mask(o, record["height"], record["width"])
        except Exception as error:
            raise UserError(
                f"Data set {data.name}: annotation {o['id']} of {record['file_name']} has no usable mask: {error}."
            ) from error

    def is_wide(self, index: int) -> bool:
        """Whether the image is wider than tall, known without reading it."""
        _, record = self.records[index]
        return record["width"] > record["height"]


def check_same_classes(one: Annotations, other: Annotations) -> None:
    """Raise `UserError` where two data sets differ in class names or their order."""
    if one.classes != other.classes:
        raise UserError(
            f"Data sets {one.name} and {other.name} have different classes: {', '.join(one.classes)} and "
            f"{', '.join(other.classes)}; give both the same `classes`."
        )


def _trainable(data: Annotations, record: dict) -> list[dict]:
    size = record["width"], record["height"]
    return [o for o in data.objects[record["id"]] if not o["iscrowd"] and trainable_box(o["bbox"], *size)]
