"""The GIoU loss of boxes (arXiv 1902.09630) in torchvision's RoI heads."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.ops import generalized_box_iou_loss

GIOU_WEIGHT = 10.0  # 1 - GIoU is smaller than smooth L1, whose offsets are scaled by 10 and 5


def giou_loss(offsets: Tensor, wanted: Tensor, labels: Tensor, proposals: Tensor, coder: BoxCoder) -> Tensor:
    """The sum of 1 - GIoU over the foreground of N RoIs, weighted and divided by N.

    Args:
        offsets: (N, 4 (K + 1)), for every class; `wanted`, (N, 4), are the targets.
        labels: (N,), 0 for background.
        proposals: (N, 4), xyxy, which both sets of offsets are relative to.
    """
    foreground = torch.where(labels > 0)[0]
    found = offsets.unflatten(1, (-1, 4))[foreground, labels[foreground]]
    boxes = [coder.decode_single(part, proposals[foreground]) for part in (found, wanted[foreground])]
    return GIOU_WEIGHT * generalized_box_iou_loss(*boxes, reduction="sum") / labels.numel()


class GIoUHeads(RoIHeads):
    """torchvision's RoI heads with `giou_loss` for the boxes."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        logits, offsets = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        all_labels = torch.cat(labels)
        losses = {
            "loss_classifier": F.cross_entropy(logits, all_labels),
            "loss_box_reg": giou_loss(offsets, torch.cat(wanted), all_labels, torch.cat(proposals), self.box_coder),
        }
        if self.has_mask():
            foreground = [torch.where(of_image > 0)[0] for of_image in labels]
            positive = [boxes[kept] for boxes, kept in zip(proposals, foreground, strict=True)]
            matches = [index[kept] for index, kept in zip(matched, foreground, strict=True)]
            pooled = self.mask_roi_pool(features, positive, image_shapes)
            masks, classes = ([target[key] for target in targets] for key in ("masks", "labels"))
            mask_logits = self.mask_predictor(self.mask_head(pooled))
            losses["loss_mask"] = maskrcnn_loss(mask_logits, positive, masks, classes, matches)
        return [], losses
