"""Test-time augmentation: run a detector on each image at several sizes, also mirrored."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from .transform import paste

VOTING_IOU = 0.65


class MultiView(nn.Module):
    """What a detector finds in all views of an image, merged in each class by NMS and box voting.

    Args:
        model: a detector of this package, in evaluation mode; it is not changed.
        sizes: of the shorter side, in place of the last of `detector.min_size`; `max_size` scales with it.
        flip: also mirrored, at each size.
        nms_thresh, detections_per_img: as in the detector.
    """

    def __init__(
        self, model: nn.Module, sizes: Sequence[int], flip: bool, nms_thresh: float, detections_per_img: int
    ) -> None:
        super().__init__()
        self.model, self.training = model, model.training
        self.nms_thresh, self.detections_per_img = nms_thresh, detections_per_img
        self.views = [(at_size(model, size), mirrored) for size in sizes for mirrored in ((False, True)[: 1 + flip])]

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """As the detector itself: for each image (C, H, W) `boxes`, `labels`, `scores` and `masks` at native size."""
        return [self.detect(image) for image in images]

    def detect(self, image: Tensor) -> dict[str, Tensor]:
        found = []
        for view, mirrored in self.views:
            (output,) = view([image.flip(-1) if mirrored else image])
            found.append(mirror(output, image.shape[-1]) if mirrored else output)
        joined = {key: torch.cat([output[key] for output in found]) for key in found[0]}
        kept = batched_nms(joined["boxes"], joined["scores"], joined["labels"], self.nms_thresh)
        merged = {key: value[kept[: self.detections_per_img]] for key, value in joined.items()}
        merged["boxes"] = vote(merged["boxes"], merged["labels"], joined)
        if "mask_crops" in merged and self.model.transform.paste_masks:
            merged["masks"] = paste(merged.pop("mask_crops"), merged["boxes"], tuple(image.shape[-2:]))
        return merged


def at_size(model: nn.Module, size: int) -> nn.Module:
    """The same detector, with shared weights, that resizes images to `size` and does not paste masks."""
    view, transform = copy.copy(model), copy.copy(model.transform)
    transform.max_size = round(transform.max_size * size / transform.min_size[-1])
    transform.min_size, transform.paste_masks = (size,), False
    view._modules = model._modules | {"transform": transform}
    return view


def mirror(output: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Detections in an image of `width` pixels, mirrored left to right together with it."""
    x0, y0, x1, y1 = output["boxes"].unbind(1)
    mirrored = {"boxes": torch.stack([width - x1, y0, width - x0, y1], 1)}
    return output | mirrored | {key: output[key].flip(-1) for key in ("masks", "mask_crops") if key in output}


def vote(kept: Tensor, labels: Tensor, found: dict[str, Tensor]) -> Tensor:
    """Box voting (arXiv 1505.01749 §5): boxes (N, 4) as score-weighted means of those of their class that overlap."""
    alike = (box_iou(kept, found["boxes"]) >= VOTING_IOU) & (labels[:, None] == found["labels"])
    weights = found["scores"] * alike
    return weights @ found["boxes"] / weights.sum(1, keepdim=True)
