"""Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv 1703.06870) with torchvision's heads over any backbone.

Calling convention, the same in every head library: `model(images, targets)` with a list of native-size RGB images
(3, H, W), uint8 or float in [0, 1], and for each a dict of `boxes` (M, 4) absolute xyxy, `labels` (M,) in
1 … num_classes and for Mask R-CNN `masks` (M, H, W). In training it returns a dict of losses. In evaluation
`model(images)` returns for each image `boxes`, `labels`, `scores` and `masks`, probabilities (M, 1, H, W), all at
native size.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from ..errors import UserError


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's resizing and normalisation, for uint8 images too and never below one pixel."""

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image if image.is_floating_point() else image / 255)

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        height, width = image.shape[-2:]
        min_size = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        scale = min(min_size / min(height, width), self.max_size / max(height, width))
        size = (max(1, int(height * scale)), max(1, int(width * scale)))
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], (height, width), size)
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None], size=size, mode="nearest")[:, 0]
        return image, target


def faster_rcnn(
    backbone: nn.Module,
    num_classes: int,
    *,
    min_size: Sequence[int] = (800,),
    max_size: int = 1333,
    image_mean: Sequence[float] = (0.485, 0.456, 0.406),
    image_std: Sequence[float] = (0.229, 0.224, 0.225),
    anchor_sizes: Sequence[Sequence[int]] = ((32,), (64,), (128,), (256,), (512,)),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rpn_pre_nms_top_n_train: int = 2000,
    rpn_pre_nms_top_n_test: int = 1000,
    rpn_post_nms_top_n_train: int = 2000,
    rpn_post_nms_top_n_test: int = 1000,
    rpn_nms_thresh: float = 0.7,
    rpn_fg_iou_thresh: float = 0.7,
    rpn_bg_iou_thresh: float = 0.3,
    rpn_batch_size_per_image: int = 256,
    rpn_positive_fraction: float = 0.5,
    rpn_score_thresh: float = 0.0,
    box_pool_size: int = 7,
    box_head_width: int = 1024,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.5,
    box_detections_per_img: int = 100,
    box_fg_iou_thresh: float = 0.5,
    box_bg_iou_thresh: float = 0.5,
    box_batch_size_per_image: int = 512,
    box_positive_fraction: float = 0.25,
) -> GeneralizedRCNN:
    """Faster R-CNN over an FPN backbone; the defaults are torchvision's.

    Args:
        backbone: gives pyramid levels of one width; proposals come from all of them, RoIs are pooled from p2 … p5.
        num_classes: without the background.
        min_size, max_size: of the shorter and the longer side in pixels; each training image draws one of `min_size`,
            evaluation takes the last.
        image_mean, image_std: of RGB in [0, 1].
        anchor_sizes: for each pyramid level, square roots of anchor areas in pixels.
        aspect_ratios: height / width, on every level.
        rpn_*, box_*: as in `torchvision.models.detection.FasterRCNN`; `box_pool_size` is the side of a pooled RoI,
            `box_head_width` that of the two hidden layers.

    Raises `UserError` where the backbone's levels do not suit.
    """
    channels, roi_levels = _pyramid(backbone, anchor_sizes)
    anchors = AnchorGenerator(
        tuple(tuple(sizes) for sizes in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes)
    )
    anchors_per_location = anchors.num_anchors_per_location()
    if len(set(anchors_per_location)) > 1:
        raise UserError(f"detector.anchor_sizes must list equally many sizes on every level, got {anchor_sizes}.")
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors_per_location[0]),
        rpn_fg_iou_thresh,
        rpn_bg_iou_thresh,
        rpn_batch_size_per_image,
        rpn_positive_fraction,
        {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
        {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
        rpn_nms_thresh,
        score_thresh=rpn_score_thresh,
    )
    roi_heads = RoIHeads(
        MultiScaleRoIAlign(roi_levels, output_size=box_pool_size, sampling_ratio=2),
        TwoMLPHead(channels * box_pool_size**2, box_head_width),
        FastRCNNPredictor(box_head_width, num_classes + 1),
        box_fg_iou_thresh,
        box_bg_iou_thresh,
        box_batch_size_per_image,
        box_positive_fraction,
        None,  # torchvision's regression weights, (10, 10, 5, 5)
        box_score_thresh,
        box_nms_thresh,
        box_detections_per_img,
    )
    init_heads(roi_heads)
    transform = ImageTransform(list(min_size), max_size, list(image_mean), list(image_std))
    return GeneralizedRCNN(backbone, rpn, roi_heads, transform)


def mask_rcnn(
    backbone: nn.Module,
    num_classes: int,
    *,
    mask_pool_size: int = 14,
    mask_head_width: int = 256,
    mask_head_depth: int = 4,
    **settings,
) -> GeneralizedRCNN:
    """Mask R-CNN over an FPN backbone: `faster_rcnn` and its settings, with a mask branch beside the box branch.

    Args:
        mask_pool_size: side of an RoI pooled for the mask; the predicted mask has twice that.
        mask_head_width, mask_head_depth: channels and number of the mask head's 3x3 convolutions.
    """
    model = faster_rcnn(backbone, num_classes, **settings)
    channels, roi_levels = next(iter(backbone.output_shape().values())).channels, model.roi_heads.box_roi_pool
    model.roi_heads.mask_roi_pool = MultiScaleRoIAlign(
        roi_levels.featmap_names, output_size=mask_pool_size, sampling_ratio=2
    )
    model.roi_heads.mask_head = MaskRCNNHeads(channels, [mask_head_width] * mask_head_depth, dilation=1)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(mask_head_width, mask_head_width, num_classes + 1)
    return model


def init_heads(roi_heads: RoIHeads) -> None:
    """Gaussians of 0.01 and 0.001 for classes and boxes (Fast R-CNN, arXiv 1504.08083 §3.1), Xavier before them.

    torchvision leaves these to `nn.Linear`, whose start is slower to train from scratch.
    """
    for hidden in (roi_heads.box_head.fc6, roi_heads.box_head.fc7):
        nn.init.kaiming_uniform_(hidden.weight, a=1)
        nn.init.zeros_(hidden.bias)
    for layer, std in ((roi_heads.box_predictor.cls_score, 0.01), (roi_heads.box_predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


def _pyramid(backbone: nn.Module, anchor_sizes: Sequence) -> tuple[int, list[str]]:
    """The width of the pyramid and the levels that RoIs are pooled from (arXiv 1612.03144 §4.2)."""
    shapes = backbone.output_shape()
    roi_levels = [level for level in shapes if level in ("p2", "p3", "p4", "p5")]
    if not roi_levels:
        raise UserError(f"The backbone gives {', '.join(shapes)}; these heads need a pyramid: use a NAME_fpn backbone.")
    if len(anchor_sizes) != len(shapes):
        raise UserError(
            f"detector.anchor_sizes has {len(anchor_sizes)} levels, but the backbone gives {len(shapes)}: "
            f"{', '.join(shapes)}."
        )
    return shapes[roi_levels[0]].channels, roi_levels
