"""What makes training on many ranks the same as on one: draws that belong to an image, and means over all ranks.

A rank sees a part of the batch. Its losses are those of the whole batch if the anchors and RoIs of an image are drawn
from the image's own seed (`target["seed"]`, from the loader), if images are padded to the batch's size over all ranks,
and if each loss that is a mean over samples is weighted by the rank's share of them.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads

from .. import distributed
from .transform import ImageTransform


class SeededSampler(BalancedPositiveNegativeSampler):
    """At most `batch_size_per_image` candidates of each image, at most `positive_fraction` of them positive.

    Each candidate draws a priority of its own, anchors by their place and RoIs by their box, so that one candidate more
    or less does not change which others are taken: proposals of nearly the same score change places with the last bit
    of a rank's arithmetic. Without seeds, it is torchvision's sampler.

    Args:
        transform: knows the seeds of the batch.
        stream: `ANCHORS` or `ROIS`.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, transform: ImageTransform, stream: int):
        super().__init__(batch_size_per_image, positive_fraction)
        self.transform, self.stream = transform, stream
        self.boxes: list[Tensor] | None = None  # the candidates, where they are RoIs
        self.positives = self.samples = 0  # of the last batch

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """From labels (A,), 1 and up positive, 0 negative, below unused, to masks (A,) of those taken."""
        positives, negatives = [], []
        for k, (labels, seed) in enumerate(zip(matched_idxs, self.transform.seeds, strict=True)):
            if seed is None:
                (positive,), (negative,) = super().__call__([labels])
            else:
                draws = torch.Generator(labels.device).manual_seed(seed + self.stream)
                if self.boxes is None:
                    priorities = torch.rand(len(labels), device=labels.device, generator=draws)
                else:
                    priorities = _hashes(self.boxes[k], draws)
                positive = _take(labels >= 1, priorities, int(self.batch_size_per_image * self.positive_fraction))
                negative = _take(labels == 0, priorities, self.batch_size_per_image - int(positive.sum()))
            positives.append(positive)
            negatives.append(negative)
        self.positives = sum(int(mask.sum()) for mask in positives)
        self.samples = self.positives + sum(int(mask.sum()) for mask in negatives)
        return positives, negatives


def _hashes(boxes: Tensor, draws: torch.Generator) -> Tensor:
    """A random number (M,) for each box by its whole pixels: the high bits of a product hash modulo 2^64."""
    factors = torch.randint(2**62, (4,), device=boxes.device, generator=draws) * 2 + 1
    return (boxes.round().long() * factors).sum(1)


def _take(candidates: Tensor, priorities: Tensor, count: int) -> Tensor:
    """The mask of the `count` candidates of highest priority."""
    places = candidates.nonzero()[:, 0]
    if len(places) <= count:
        return candidates
    taken = torch.zeros_like(candidates)
    taken[places[priorities[places].topk(count).indices]] = True
    return taken


class SeededRoIHeads(RoIHeads):
    """torchvision's, whose sampler is shown the proposals."""

    def assign_targets_to_proposals(self, proposals: list[Tensor], *targets: list[Tensor]) -> tuple:
        self.fg_bg_sampler.boxes = proposals
        return super().assign_targets_to_proposals(proposals, *targets)


class ShardedRCNN(GeneralizedRCNN):
    """torchvision's, whose losses, averaged over ranks, are those of the whole batch."""

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        outputs = super().forward(images, targets)
        return self._weighted(outputs) if self.training else outputs

    def _weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        rpn, roi = self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler
        anchors, rois, masks = distributed.shares([rpn.samples, roi.samples, roi.positives])
        share_of = {"loss_objectness": anchors, "loss_rpn_box_reg": anchors, "loss_mask": masks}
        return {name: loss * share_of.get(name, rois) for name, loss in losses.items()}
