"""Make a batch that is split over ranks train like the same batch on one rank.

On its own a detector never talks to other processes. `global_batch(model)`, called by the trainer for its own model,
pads images to one size over all ranks and weights each loss that is a mean over samples by the rank's share of them.
What is drawn for an image (its size, anchors, RoIs) comes from the `seed` in its target, where a loader gives one.
"""

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from .. import distributed
from .transform import ImageTransform


def global_batch(model: nn.Module) -> nn.Module:
    """Make the losses of a detector of this package, averaged over ranks, those of the whole batch; returns `model`.

    From then on every rank must take part in every training step. Evaluation stays local.
    """
    for module in model.modules():
        if hasattr(module, "over_ranks"):
            module.over_ranks = True
    return model


class ImageSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler, whose draws for an image come from the image's seed if it has one.

    At most `batch_size_per_image` candidates of each image, at most `positive_fraction` of them positive.

    Args:
        transform: knows the seeds of the batch.
        stream: `transform.ANCHORS` or `ROIS`.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, transform: ImageTransform, stream: int):
        super().__init__(batch_size_per_image, positive_fraction)
        self.transform, self.stream = transform, stream
        self.samples: list[tuple[Tensor, Tensor]] = []  # masks of the positives and negatives of the last batch

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """From labels (A,), 1 and up positive, 0 negative, below unused, to masks (A,) of those taken."""
        self.samples = []
        for labels, seed in zip(matched_idxs, self.transform.seeds, strict=True):
            if seed is None:
                (positive,), (negative,) = super().__call__([labels])
            else:
                draws = torch.Generator(labels.device).manual_seed(seed + self.stream)
                priorities = torch.rand(len(labels), device=labels.device, generator=draws)
                positive = take(labels >= 1, priorities, int(self.batch_size_per_image * self.positive_fraction))
                room = self.batch_size_per_image - int(positive.sum())
                negative = take(labels == 0, priorities, room)
            self.samples.append((positive, negative))
        positives, negatives = map(list, zip(*self.samples, strict=True))
        return positives, negatives

    def counts(self) -> tuple[Tensor, Tensor]:
        """Positives and samples of the last batch, on its device."""
        positives, negatives = (torch.cat(masks).sum() for masks in zip(*self.samples, strict=True))
        return positives, positives + negatives


def take(candidates: Tensor, priorities: Tensor, most: int) -> Tensor:
    """The mask of the candidates of highest priority, at most `most` of them."""
    places = priorities.masked_fill(~candidates, -1).topk(min(most, len(priorities))).indices
    return torch.zeros_like(candidates).scatter_(0, places, candidates[places])


class RCNN(GeneralizedRCNN):
    """torchvision's, whose losses, averaged over ranks, can be those of the whole batch (`global_batch`)."""

    over_ranks = False

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        outputs = super().forward(images, targets)
        if not (self.training and self.over_ranks):
            return outputs
        _, anchors = self.rpn.fg_bg_sampler.counts()
        masks, rois = self.roi_heads.fg_bg_sampler.counts()
        anchors, rois, masks = distributed.shares([anchors, rois, masks])
        share_of = {"loss_objectness": anchors, "loss_rpn_box_reg": anchors, "loss_mask": masks}
        return {name: loss * share_of.get(name, rois) for name, loss in outputs.items()}


class GlobalFCOSHead(FCOSHead):
    """torchvision's, whose losses are means over the foreground; averaged over ranks, over that of the whole batch."""

    over_ranks = False

    def compute_loss(self, targets: list[dict], head_outputs: dict, anchors: list, matched_idxs: list) -> dict:
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        if not self.over_ranks:
            return losses
        (share,) = distributed.shares([(torch.cat(matched_idxs) >= 0).sum()])
        return {name: loss * share for name, loss in losses.items()}
