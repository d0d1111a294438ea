"""The twin of `sampling.py`: in front of detectron2's classes, what makes many ranks train as one."""

import torch
from torch import Tensor

from .. import distributed
from .draws import ANCHORS, ROIS, drawing_from


class SeededAnchors:
    """In front of an RPN: draws the anchors of each image from the image's own seed, the next of `seeds`."""

    def _subsample_labels(self, label: Tensor) -> Tensor:
        with drawing_from(next(self.seeds), ANCHORS, label.device):
            return super()._subsample_labels(label)


class SeededRoIs:
    """In front of RoI heads: draws the RoIs of each image from the image's own seed, and remembers their classes."""

    def _sample_proposals(self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor) -> tuple:
        with drawing_from(next(self.seeds), ROIS, matched_idxs.device):
            sampled, classes = super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        self.sampled_classes.append(classes)
        return sampled, classes


class ShardedLosses:
    """In front of a GeneralizedRCNN that knows its images' `seeds`: losses whose mean over ranks is the batch's."""

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        rpn, heads = self.proposal_generator, self.roi_heads
        rpn.seeds, heads.seeds = iter(self.seeds), iter(self.seeds)
        heads.sampled_classes = []
        outputs = super().forward(batched_inputs)
        if not self.training or distributed.world_size() == 1:
            return outputs
        classes = torch.cat(heads.sampled_classes)
        samples = torch.full((), len(classes), device=classes.device)
        rois, masks = distributed.shares([samples, (classes < heads.num_classes).sum()])
        # Those of the RPN stay: it divides by a constant.
        share_of = {"loss_cls": rois, "loss_box_reg": rois, "loss_mask": masks}
        return {name: loss * share_of.get(name, 1.0) for name, loss in outputs.items()}
