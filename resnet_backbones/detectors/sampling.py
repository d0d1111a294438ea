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
        self.taken: tuple[list[Tensor], list[Tensor]] = ([], [])  # of the last batch

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
                most = self.batch_size_per_image
                positive = _take(labels >= 1, priorities, int(most * self.positive_fraction))
                negative = _take(labels == 0, priorities, most, most - positive.sum())
            positives.append(positive)
            negatives.append(negative)
        self.taken = (positives, negatives)
        return positives, negatives

    def counts(self) -> tuple[Tensor, Tensor]:
        """Positives and samples of the last batch, on its device."""
        positives, negatives = (torch.cat(masks).sum() for masks in self.taken)
        return positives, positives + negatives


def _hashes(boxes: Tensor, draws: torch.Generator) -> Tensor:
    """A random number (M,) for each box by its whole pixels: the high bits of a product hash modulo 2^64."""
    factors = torch.randint(2**62, (4,), device=boxes.device, generator=draws) * 2 + 1
    return (boxes.round().long() * factors).sum(1)


def _take(candidates: Tensor, priorities: Tensor, most: int, room: Tensor | None = None) -> Tensor:
    """The mask of the candidates of highest priority, `most` of them at most, and no more than there is `room` for.

    Nothing of it depends on how many there are, so that the host need not know.
    """
    lowest = (torch.finfo if priorities.is_floating_point() else torch.iinfo)(priorities.dtype).min
    places = priorities.masked_fill(~candidates, lowest).topk(min(most, len(priorities))).indices
    taken = candidates[places]
    if room is not None:
        taken &= torch.arange(len(places), device=places.device) < room
    return torch.zeros_like(candidates).scatter_(0, places, taken)


class SeededRoIHeads(RoIHeads):
    """torchvision's, whose sampler is shown the proposals."""

    def assign_targets_to_proposals(self, proposals: list[Tensor], *targets: list[Tensor]) -> tuple:
        self.fg_bg_sampler.boxes = proposals
        return super().assign_targets_to_proposals(proposals, *targets)


class ShardedRCNN(GeneralizedRCNN):
    """torchvision's, whose losses, averaged over ranks, are those of the whole batch."""

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        outputs = super().forward(images, targets)
        return self._weighted(outputs) if self.training and distributed.world_size() > 1 else outputs

    def _weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        _, anchors = self.rpn.fg_bg_sampler.counts()
        masks, rois = self.roi_heads.fg_bg_sampler.counts()
        anchors, rois, masks = distributed.shares([anchors, rois, masks])
        share_of = {"loss_objectness": anchors, "loss_rpn_box_reg": anchors, "loss_mask": masks}
        return {name: loss * share_of.get(name, rois) for name, loss in losses.items()}
