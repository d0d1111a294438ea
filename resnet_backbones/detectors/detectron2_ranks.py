"""The twin of `ranks.py`: mixins for detectron2's classes that make a batch over many ranks train as on one."""

import torch
from torch import Tensor

from .. import distributed
from .transform import ANCHORS, ROIS


class SeededAnchors:
    """A mixin for an RPN: draws the anchors of each image from the image's own seed, the next of `seeds`."""

    def _subsample_labels(self, label: Tensor) -> Tensor:
        with distributed.seeded(next(self.seeds), ANCHORS, label.device):
            return super()._subsample_labels(label)


class SeededRoIs:
    """A mixin for RoI heads: draws the RoIs of each image from the image's own seed, and keeps their classes."""

    def _sample_proposals(self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor) -> tuple:
        with distributed.seeded(next(self.seeds), ROIS, matched_idxs.device):
            sampled, classes = super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        self.sampled_classes.append(classes)
        return sampled, classes


class GlobalLosses:
    """A mixin for a GeneralizedRCNN with its images' `seeds`: losses whose mean over ranks can be the batch's."""

    over_ranks = False

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        rpn, heads = self.proposal_generator, self.roi_heads
        rpn.seeds, heads.seeds = iter(self.seeds), iter(self.seeds)
        heads.sampled_classes = []
        outputs = super().forward(batched_inputs)
        if not (self.training and self.over_ranks):
            return outputs
        classes = torch.cat(heads.sampled_classes)
        samples = torch.full((), len(classes), device=classes.device)
        rois, masks = distributed.shares([samples, (classes < heads.num_classes).sum()])
        # The RPN's losses stay: they are divided by a constant.
        share_of = {"loss_cls": rois, "loss_box_reg": rois, "loss_mask": masks}
        return {name: loss * share_of.get(name, 1.0) for name, loss in outputs.items()}
