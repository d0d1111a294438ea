"""Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv 1703.06870) with torchvision's heads over any backbone.

Calling convention, the same in every head library: `model(images, targets)` with a list of native-size RGB images
(3, H, W), uint8 or float in [0, 1], and for each a dict of `boxes` (M, 4) absolute xyxy, `labels` (M,) in
1 … num_classes and for Mask R-CNN `masks` (M, H, W). In training it returns a dict of losses. In evaluation
`model(images)` returns for each image `boxes`, `labels`, `scores` and `masks`, probabilities (M, 1, H, W), all at
native size.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from ..preprocessing import detector_preprocessing
from .dense import fcos, retinanet
from .draws import ANCHORS, ROIS
from .features import head_features
from .roi_align import PyramidRoIAlign
from .sampling import SeededRoIHeads, SeededSampler, ShardedRCNN
from .transform import ImageTransform

__all__ = ["faster_rcnn", "fcos", "mask_rcnn", "retinanet"]


class StageHead(nn.Module):
    """The backbone's last stage on every pooled RoI, averaged over its positions (arXiv 1512.03385, appendix A)."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, pooled: Tensor) -> Tensor:
        return self.stage(pooled).mean((2, 3))


def faster_rcnn(
    backbone: nn.Module,
    num_classes: int,
    *,
    min_size: Sequence[int] = (800,),
    max_size: int = 1333,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
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
    box_head: str = "mlp",
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
    """Faster R-CNN; the defaults are torchvision's, for an FPN.

    Args:
        backbone: what it gives decides what the heads look at. Pyramid levels: proposals come from all of them, RoIs
            are pooled from p2 … p5. A single map, such as res5 at `output_stride=16` (DC5) or VGG-16's res4: both
            come from it. res4 and res5 with `box_head="res5"` (C4): both come from res4, and the stage that makes
            res5 moves from the backbone into the box head.
        num_classes: without the background.
        min_size, max_size: of the shorter and the longer side in pixels; each training image draws one of `min_size`,
            evaluation takes the last.
        image_mean, image_std: of RGB in [0, 1]; by default those that came with the backbone's weights, or ImageNet's.
        anchor_sizes: for each pyramid level, square roots of anchor areas in pixels.
        aspect_ratios: height / width, on every level.
        box_head: "mlp", two hidden layers, or "res5".
        rpn_*, box_*: as in `torchvision.models.detection.FasterRCNN`; `box_pool_size` is the side of a pooled RoI,
            `box_head_width` that of the two hidden layers.

    Raises `UserError` where the backbone's features do not suit.
    """
    shapes, roi_levels, res5, res5_channels = head_features(backbone, anchor_sizes, box_head)
    channels = shapes[roi_levels[0]].channels
    head = StageHead(res5) if res5 is not None else TwoMLPHead(channels * box_pool_size**2, box_head_width)
    head_width = res5_channels or box_head_width
    anchors = AnchorGenerator(
        tuple(tuple(sizes) for sizes in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes)
    )
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        rpn_fg_iou_thresh,
        rpn_bg_iou_thresh,
        rpn_batch_size_per_image,
        rpn_positive_fraction,
        {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
        {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
        rpn_nms_thresh,
        score_thresh=rpn_score_thresh,
    )
    roi_heads = SeededRoIHeads(
        PyramidRoIAlign({level: shapes[level].stride for level in roi_levels}, box_pool_size),
        head,
        FastRCNNPredictor(head_width, num_classes + 1),
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
    transform = ImageTransform(min_size, max_size, detector_preprocessing(backbone, image_mean, image_std))
    rpn.fg_bg_sampler = SeededSampler(rpn_batch_size_per_image, rpn_positive_fraction, transform, ANCHORS)
    roi_heads.fg_bg_sampler = SeededSampler(box_batch_size_per_image, box_positive_fraction, transform, ROIS)
    return ShardedRCNN(backbone, rpn, roi_heads, transform)


def mask_rcnn(
    backbone: nn.Module,
    num_classes: int,
    *,
    mask_pool_size: int = 14,
    mask_head_width: int = 256,
    mask_head_depth: int = 4,
    **settings,
) -> GeneralizedRCNN:
    """Mask R-CNN: `faster_rcnn` and its settings, with a mask branch beside the box branch.

    Args:
        mask_pool_size: side of an RoI pooled for the mask; the predicted mask has twice that, with `box_head="res5"`
            as much.
        mask_head_width, mask_head_depth: channels and number of the mask head's 3x3 convolutions. With
            `box_head="res5"` the shared res5 takes their place, and the width is that of the last layer alone
            (arXiv 1703.06870, Figure 4 left).
    """
    model = faster_rcnn(backbone, num_classes, **settings)
    heads = model.roi_heads
    shapes = backbone.output_shape()
    heads.mask_roi_pool = PyramidRoIAlign(
        {level: shapes[level].stride for level in heads.box_roi_pool.featmap_names}, mask_pool_size
    )
    if isinstance(heads.box_head, StageHead):
        heads.mask_head, channels = heads.box_head.stage, heads.box_predictor.cls_score.in_features
    else:
        channels = shapes[heads.box_roi_pool.featmap_names[0]].channels
        heads.mask_head = MaskRCNNHeads(channels, [mask_head_width] * mask_head_depth, dilation=1)
        channels = mask_head_width
    heads.mask_predictor = MaskRCNNPredictor(channels, mask_head_width, num_classes + 1)
    return model


def init_heads(roi_heads: RoIHeads) -> None:
    """Gaussians of 0.01 and 0.001 for classes and boxes (Fast R-CNN, arXiv 1504.08083 §3.1), Xavier before them.

    torchvision leaves these to `nn.Linear`, whose start is slower to train from scratch.
    """
    if isinstance(roi_heads.box_head, TwoMLPHead):
        for hidden in (roi_heads.box_head.fc6, roi_heads.box_head.fc7):
            nn.init.kaiming_uniform_(hidden.weight, a=1)
            nn.init.zeros_(hidden.bias)
    for layer, std in ((roi_heads.box_predictor.cls_score, 0.01), (roi_heads.box_predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
