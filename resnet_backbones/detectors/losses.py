"""The losses of the box head (Fast R-CNN, arXiv 1504.08083 §2.3) and their alternatives."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.ops import generalized_box_iou_loss

IOU_LOSS_WEIGHT = 10.0  # 1 - GIoU is smaller than smooth L1, whose offsets are scaled by 10 and 5


def class_loss(logits: Tensor, labels: Tensor, class_weights: Sequence[float]) -> Tensor:
    """The mean over N RoIs of -w log p, p being the probability of the true class.

    Args:
        logits: (N, K + 1), the background first.
        labels: (N,), 0 for background.
        class_weights: w of the K classes without the background, whose own is 1; empty for 1.
    """
    weights = logits.new_tensor([1.0, *class_weights]) if class_weights else None
    return F.cross_entropy(logits, labels, weights, reduction="sum") / labels.numel()


def box_loss(offsets: Tensor, wanted: Tensor, labels: Tensor, proposals: Tensor, coder: BoxCoder, kind: str) -> Tensor:
    """The sum over the foreground, divided by N, of smooth L1 or of 1 - GIoU (arXiv 1902.09630).

    Args:
        offsets: (N, 4 (K + 1)), for every class; `wanted`, (N, 4), are the targets.
        labels: (N,), 0 for background.
        proposals: (N, 4), xyxy, which both sets of offsets are relative to.
    """
    foreground = torch.where(labels > 0)[0]
    found = offsets.unflatten(1, (-1, 4))[foreground, labels[foreground]]
    if kind == "smooth_l1":
        loss = F.smooth_l1_loss(found, wanted[foreground], beta=1 / 9, reduction="sum")
    else:
        boxes = [coder.decode_single(part, proposals[foreground]) for part in (found, wanted[foreground])]
        loss = IOU_LOSS_WEIGHT * generalized_box_iou_loss(*boxes, reduction="sum")
    return loss / labels.numel()


class HeadsWithLosses(RoIHeads):
    """torchvision's RoI heads with a choice of the box loss and class weights.

    Attributes:
        box_loss, class_weights: as in `settings.FasterRCNN`; no weights are an empty list.
    """

    def choose(self, box_loss: str, class_weights: Sequence[float]) -> "HeadsWithLosses":
        self.box_loss, self.class_weights = box_loss, list(class_weights)
        return self

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
            "loss_classifier": class_loss(logits, all_labels, self.class_weights),
            "loss_box_reg": box_loss(
                offsets, torch.cat(wanted), all_labels, torch.cat(proposals), self.box_coder, self.box_loss
            ),
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
