"""The way of an image into a detector: normalised and resized, on the model's device."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .. import distributed
from ..preprocessing import Normalize, Preprocessing
from .draws import RESIZE, drawing_from


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's resizing, never below one pixel, of RGB images, uint8 or float in [0, 1]."""

    def __init__(self, min_size: Sequence[int], max_size: int, preprocessing: Preprocessing) -> None:
        super().__init__(list(min_size), max_size, *preprocessing.as_rgb())
        self.preprocessing, self.normalizer = preprocessing, Normalize(preprocessing)
        self.seeds: list[int | None] = []  # of the batch's images, for whatever is drawn for each

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> tuple[ImageList, list[dict] | None]:
        self.seeds = [target.get("seed") for target in targets] if targets is not None else [None] * len(images)
        return super().forward(images, targets)

    def normalize(self, image: Tensor) -> Tensor:
        return self.normalizer(image)

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        height, width = image.shape[-2:]
        min_size = self._drawn_size(target) if self.training else self.min_size[-1]
        scale = min(min_size / min(height, width), self.max_size / max(height, width))
        size = (max(1, int(height * scale)), max(1, int(width * scale)))
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], (height, width), size)
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None], size=size, mode="nearest")[:, 0]
        return image, target

    def max_by_axis(self, shapes: list[list[int]]) -> list[int]:
        """The size that a batch is padded to: in training that of the whole batch over all ranks.

        Padding shows in what a network computes near it. It costs no time, for the rank of the largest image sets the
        pace of all.
        """
        largest = super().max_by_axis(shapes)
        return distributed.largest(largest) if self.training else largest

    def _drawn_size(self, target: dict | None) -> int:
        with drawing_from((target or {}).get("seed"), RESIZE, torch.device("cpu")):
            return self.torch_choice(self.min_size)

    def postprocess(
        self, result: list[dict], image_shapes: list[tuple[int, int]], original_image_sizes: list[tuple[int, int]]
    ) -> list[dict]:
        if self.training:
            return result
        crops = [detections.pop("masks", None) for detections in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for detections, masks, size in zip(result, crops, original_image_sizes, strict=True):
            if masks is not None:
                detections["masks"] = paste(masks, detections["boxes"], size)
        return result


def resize_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """torchvision's, to the last bit, without its scalars made on the boxes' device, which wait for a GPU."""
    ratio_y, ratio_x = torch.tensor(new_size, dtype=torch.float32) / torch.tensor(size, dtype=torch.float32)
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack((x0 * ratio_x, y0 * ratio_y, x1 * ratio_x, y1 * ratio_y), dim=1)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """torchvision's `paste_masks_in_image`, mask by mask into its result; all at once takes twice the memory."""
    pasted = masks.new_empty(len(masks), 1, *size)
    for k in range(len(masks)):
        pasted[k] = paste_masks_in_image(masks[k, None], boxes[k, None], size)[0]
    return pasted
