"""Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv 1703.06870) of one image as plain tensor code."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from ..detectors.ranks import RCNN
from ..detectors.roi_align import PyramidRoIAlign
from .boxes import Size, anchors_of, at_least, best, clip, nms_by_class, non_maximum_suppression, prepare, to_native

# Boxes go to RoIAlign in bands of this height, from left to right: with neighbors sharing what is in the cache,
# onnxruntime's takes 15 % less time.
BAND, WIDEST = 32, 1e5


class RCNNGraph(nn.Module):
    """What an R-CNN of `detectors.torchvision` finds in an image (1, C, H, W).

    Gives boxes (N, 4), labels (N,) and scores (N,), and for Mask R-CNN masks (N, 1, H, W), probabilities.
    """

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        padded, size = prepare(image, self.model.transform)
        features = self.model.backbone(padded)
        proposals = self.proposals(padded, list(features.values()), size)
        boxes, scores, labels = self.detections(features, proposals, size)
        native = image.shape[-2:]
        found = {"boxes": to_native(boxes, size, native), "labels": labels, "scores": scores}
        if self.model.roi_heads.has_mask():
            found["masks"] = paste(self.masks(features, boxes, labels), found["boxes"], native)
        return found

    def proposals(self, padded: Tensor, features: list[Tensor], size: Size) -> Tensor:
        """The boxes (P, 4) of the RPN: the best of each level after NMS; of those, the best over all levels."""
        rpn, boxes, scores = self.model.rpn, [], []
        levels = zip(*rpn.head(features), anchors_of(rpn.anchor_generator, padded, features), strict=True)
        for objectness, deltas, anchors in levels:
            score, place = best(objectness.permute(0, 2, 3, 1).flatten(), rpn.pre_nms_top_n())
            deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
            box, score = clip(rpn.box_coder.decode_single(deltas[place], anchors[place]), size), score.sigmoid()
            kept = at_least(box, rpn.min_size) & (score >= rpn.score_thresh)
            box, score = box[kept], score[kept]
            kept = non_maximum_suppression(box, score, rpn.nms_thresh)
            boxes.append(box[kept])
            scores.append(score[kept])
        _, place = best(torch.cat(scores), rpn.post_nms_top_n())
        return torch.cat(boxes)[place]

    def detections(self, features: dict[str, Tensor], proposals: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, 4), scores (N,) and labels (N,) of the second stage."""
        heads = self.model.roi_heads
        pooled, rows = pool(heads.box_roi_pool, features, proposals)
        logits, deltas = (output[rows] for output in heads.box_predictor(heads.box_head(pooled)))
        boxes = clip(heads.box_coder.decode_single(deltas, proposals).reshape(-1, 4), size)
        boxes = boxes.unflatten(0, (-1, logits.shape[1]))[:, 1:].flatten(0, 1)
        scores = logits.softmax(1)[:, 1:]
        labels = torch.arange(1, logits.shape[1]).expand_as(scores).flatten()
        scores = scores.flatten()
        found = (scores > heads.score_thresh) & at_least(boxes, 1e-2)
        return nms_by_class(boxes[found], scores[found], labels[found], heads.nms_thresh, heads.detections_per_img)

    def masks(self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """The probabilities (N, M, M) of each box's own class."""
        heads = self.model.roi_heads
        pooled, rows = pool(heads.mask_roi_pool, features, boxes)
        logits = heads.mask_predictor(heads.mask_head(pooled))[rows]
        return logits[torch.arange(labels.shape[0]), labels].sigmoid()


def pool(align: PyramidRoIAlign, features: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """RoIs (N, C, S, S) of boxes (N, 4), each pooled from its own level, and the index of each box's RoI."""
    level_of = align.map_levels([boxes])
    rois = F.pad(boxes, (1, 0))  # the first number is the image's
    pooled, order = [], []
    for level, (name, scale) in enumerate(zip(align.featmap_names, align.scales, strict=True)):
        places = (level_of == level).nonzero()[:, 0]
        places = places[(boxes[places, 1] // BAND * WIDEST + boxes[places, 0]).argsort()]
        pooled.append(roi_align(features[name], rois[places], align.output_size, scale, align.sampling_ratio))
        order.append(places)
    return torch.cat(pooled), torch.cat(order).argsort()


def paste(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Masks (N, M, M) of boxes (N, 4) as masks (N, 1, H, W) of the image, with bilinear interpolation (§3.1).

    The interpolation is linear along each axis: rows · mask · columnsᵀ. As in torchvision, masks have a border of
    zeros, and boxes, which grow with it, begin and end at whole pixels.
    """
    masks = F.pad(masks, (1, 1, 1, 1))
    side = masks.shape[-1]
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * (side / (side - 2))
    start, end = (center - half).trunc(), (center + half).trunc() + 1
    height, width = size
    rows = interpolation(start[:, 1], end[:, 1], height, side)
    columns = interpolation(start[:, 0], end[:, 0], width, side)
    return (rows @ masks @ columns.transpose(1, 2))[:, None]


def interpolation(start: Tensor, end: Tensor, length: int, side: int) -> Tensor:
    """Weights (N, length, side) of `side` values spread over the pixels from `start` to `end`; elsewhere 0."""
    pixels, start, end = torch.arange(length, dtype=start.dtype), start[:, None], end[:, None]
    at = ((pixels + 0.5 - start) * (side / (end - start).clamp(min=1)) - 0.5).clamp(0, side - 1)
    weights = (1 - (at[:, :, None] - torch.arange(side)).abs()).clamp(min=0)
    return weights * ((pixels >= start) & (pixels < end))[:, :, None]
