"""How images enter a detector: normalized and resized, on the model's device."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from .. import distributed
from ..preprocessing import Normalize, Preprocessing, detector_preprocessing
from .settings import ImageSettings

RESIZE, ANCHORS, ROIS = 1, 2, 3  # added to an image's seed: each kind of draw has a stream of its own


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's resizing, never below one pixel, of images (C, H, W), uint8 or float in [0, 1]."""

    over_ranks = False  # pad training images to the largest size over all ranks; see `ranks.global_batch`
    paste_masks = True  # else the mask head's crops (M, 1, S, S) are given as `mask_crops`, without `masks`

    def __init__(self, min_size: Sequence[int], max_size: int, preprocessing: Preprocessing) -> None:
        super().__init__(list(min_size), max_size, *preprocessing.as_rgb())
        self.preprocessing, self.normalizer = preprocessing, Normalize(preprocessing)
        self.seeds: list[int | None] = []  # of the batch's images

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> tuple[ImageList, list[dict] | None]:
        self.seeds = [target.get("seed") for target in targets] if targets is not None else [None] * len(images)
        return super().forward(images, targets)

    def normalize(self, image: Tensor) -> Tensor:
        return self.normalizer(image)

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        height, width = image.shape[-2:]
        size = self.resized(height, width, self.drawn_size(target) if self.training else None)
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], list(size))
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None], size=size, mode="nearest")[:, 0]
        return image, target

    def resized(self, height: int, width: int, min_size: int | None = None) -> tuple[int, int]:
        """The size that an image is resized to, by default that of evaluation.

        In whole numbers, also symbolic ones: torchvision's product of floats turns some images' 800 into 799.
        """
        shorter, longer = torch.sym_min(height, width), torch.sym_max(height, width)
        shorter_to = min_size or self.min_size[-1]
        sides = (torch.sym_min(s * shorter_to // shorter, s * self.max_size // longer) for s in (height, width))
        height, width = (torch.sym_max(1, side) for side in sides)
        return height, width

    def drawn_size(self, target: dict | None) -> int:
        """One of `min_size`, drawn from the image's seed if it has one."""
        seed = None if target is None else target.get("seed")
        with distributed.seeded(seed, RESIZE):
            return self.min_size[int(torch.rand(1) * len(self.min_size))]

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        """The size that a batch is padded to. Padding affects what a network computes near it."""
        largest = super().max_by_axis(the_list)
        return distributed.largest(largest) if self.training and self.over_ranks else largest

    def postprocess(
        self, result: list[dict], image_shapes: list[tuple[int, int]], original_image_sizes: list[tuple[int, int]]
    ) -> list[dict]:
        if self.training:
            return result
        crops = [detections.pop("masks", None) for detections in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for detections, masks, size in zip(result, crops, original_image_sizes, strict=True):
            if masks is not None and self.paste_masks:
                detections["masks"] = paste(masks, detections["boxes"], size)
            elif masks is not None:
                detections["mask_crops"] = masks
        return result


def image_transform(s: ImageSettings, backbone: nn.Module) -> ImageTransform:
    """The transform of a detector over `backbone`, whose weights say how images are normalized."""
    preprocessing = detector_preprocessing(backbone, s.image_mean, s.image_std)
    return ImageTransform(s.min_size, s.max_size, preprocessing)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """torchvision's `paste_masks_in_image`, mask by mask into its result; all at once takes twice the memory."""
    pasted = masks.new_empty(len(masks), 1, *size)
    for k in range(len(masks)):
        pasted[k] = paste_masks_in_image(masks[k, None], boxes[k, None], size)[0]
    return pasted
