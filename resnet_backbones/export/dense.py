"""RetinaNet (arXiv 1708.02002 §4.1) and FCOS (arXiv 1904.01355 §3.1) of one image as plain tensor code."""

import torch
from torch import Tensor, nn

from ..detectors.dense import FCOS, RetinaNet
from .boxes import anchors_of, best, clip, nms_by_class, prepare, to_native


class DenseGraph(nn.Module):
    """What a one-stage detector finds in an image (1, C, H, W): boxes (N, 4), labels (N,) and scores (N,)."""

    def __init__(self, model: RetinaNet | FCOS) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        model = self.model
        padded, size = prepare(image, model.transform)
        features = list(model.backbone(padded).values())
        anchors = anchors_of(model.anchor_generator, padded, features)
        levels = [self.candidates(*level) for level in zip(features, anchors, strict=True)]
        boxes, scores, labels = map(torch.cat, zip(*levels, strict=True))
        boxes = clip(boxes, size)
        found = scores > model.score_thresh
        boxes, scores, labels = nms_by_class(
            boxes[found], scores[found], labels[found], model.nms_thresh, model.detections_per_img
        )
        return {"boxes": to_native(boxes, size, image.shape[-2:]), "labels": labels + 1, "scores": scores}

    def candidates(self, feature: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes, scores and classes from 0 of a level's best `topk_candidates` pairs of anchor and class."""
        outputs = {name: output[0] for name, output in self.model.head([feature]).items()}
        scores = outputs["cls_logits"].sigmoid()
        if "bbox_ctrness" in outputs:  # FCOS
            scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        classes = scores.shape[1]
        scores, place = best(scores.flatten(), self.model.topk_candidates)
        anchor = place // classes
        deltas, anchors = outputs["bbox_regression"][anchor], anchors[anchor]
        coder = self.model.box_coder
        boxes = coder.decode(deltas, anchors) if isinstance(self.model, FCOS) else coder.decode_single(deltas, anchors)
        return boxes, scores, place % classes
