"""The one-stage detectors of torchvision over P3 … P7: RetinaNet (arXiv 1708.02002) and FCOS (arXiv 1904.01355).

The calling convention is that of `torchvision.py`. torchvision's own count classes from 0 and would keep an idle
channel for the background; here they have `num_classes` channels, and labels are shifted at the door.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from .. import distributed
from ..preprocessing import detector_preprocessing
from .features import check_dense_levels
from .transform import ImageTransform

ANCHOR_SIZES = ((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812))


class LabelsFromOne:
    """In front of a detector whose labels count from 0 and whose losses are not called so."""

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        if targets is not None:
            targets = [target | {"labels": target["labels"] - 1} for target in targets]
        outputs = super().forward(images, targets)
        if self.training:
            return {f"loss_{name}": loss for name, loss in outputs.items()}
        return [output | {"labels": output["labels"] + 1} for output in outputs]


class RetinaNetFromOne(LabelsFromOne, RetinaNet):
    pass


class FCOSFromOne(LabelsFromOne, FCOS):
    """Its losses are means over the batch's foreground; averaged over ranks they are those over all ranks'."""

    def compute_loss(self, targets: list[dict], head_outputs: dict, anchors: list, num_anchors_per_level: list) -> dict:
        losses = super().compute_loss(targets, head_outputs, anchors, num_anchors_per_level)
        if distributed.world_size() == 1:
            return losses
        (share,) = distributed.shares([(torch.cat(self.head.matched) >= 0).sum()])
        return {name: loss * share for name, loss in losses.items()}


class RememberingFCOSHead(FCOSHead):
    """torchvision's, which remembers whose object each position of the last batch was."""

    def compute_loss(self, targets: list[dict], head_outputs: dict, anchors: list, matched_idxs: list) -> dict:
        self.matched = matched_idxs
        return super().compute_loss(targets, head_outputs, anchors, matched_idxs)


def retinanet(
    backbone: nn.Module,
    num_classes: int,
    *,
    min_size: Sequence[int] = (800,),
    max_size: int = 1333,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    anchor_sizes: Sequence[Sequence[int]] = ANCHOR_SIZES,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    box_fg_iou_thresh: float = 0.5,
    box_bg_iou_thresh: float = 0.4,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.5,
    box_detections_per_img: int = 100,
    topk_candidates: int = 1000,
) -> nn.Module:
    """RetinaNet: two 4-convolution heads on every level, focal loss.

    Args:
        anchor_sizes: for each of p3 … p7; three sizes a level, 2^(1/3) apart, in the paper (§4).
        box_fg_iou_thresh, box_bg_iou_thresh: an anchor is an object's from the first on, background below the second.
        topk_candidates: kept per level before NMS.
        others: as in `torchvision.faster_rcnn`.

    Raises `UserError` where the backbone gives other than p3 … p7.
    """
    check_dense_levels(backbone, anchor_sizes)
    anchors = AnchorGenerator(tuple(map(tuple, anchor_sizes)), (tuple(aspect_ratios),) * len(anchor_sizes))
    head = RetinaNetHead(backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes)
    model = RetinaNetFromOne(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=box_score_thresh,
        nms_thresh=box_nms_thresh,
        detections_per_img=box_detections_per_img,
        fg_iou_thresh=box_fg_iou_thresh,
        bg_iou_thresh=box_bg_iou_thresh,
        topk_candidates=topk_candidates,
    )
    model.transform = ImageTransform(min_size, max_size, detector_preprocessing(backbone, image_mean, image_std))
    return model


def fcos(
    backbone: nn.Module,
    num_classes: int,
    *,
    min_size: Sequence[int] = (800,),
    max_size: int = 1333,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    center_sampling_radius: float = 1.5,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.6,
    box_detections_per_img: int = 100,
    topk_candidates: int = 1000,
) -> nn.Module:
    """FCOS: no anchors; every position inside an object's centre regresses the four sides and its centre-ness.

    Args:
        center_sampling_radius: in strides around an object's centre, where positions are its own.
        topk_candidates: kept per level before NMS.
        others: as in `torchvision.faster_rcnn`.

    Raises `UserError` where the backbone gives other than p3 … p7.
    """
    check_dense_levels(backbone)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)  # FCOS's own: one box a position
    model = FCOSFromOne(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=RememberingFCOSHead(backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes),
        center_sampling_radius=center_sampling_radius,
        score_thresh=box_score_thresh,
        nms_thresh=box_nms_thresh,
        detections_per_img=box_detections_per_img,
        topk_candidates=topk_candidates,
    )
    model.transform = ImageTransform(min_size, max_size, detector_preprocessing(backbone, image_mean, image_std))
    return model
