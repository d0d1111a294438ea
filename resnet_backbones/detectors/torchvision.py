"""Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv 1703.06870) with torchvision's heads over any backbone.

Calling convention, the same in every head library: `model(images, targets)` with a list of native-size images
(C, H, W), uint8 or float in [0, 1], RGB unless the backbone takes other channels, and for each a dict of `boxes`
(M, 4) absolute xyxy, `labels` (M,) in 1 … num_classes and for Mask R-CNN `masks` (M, H, W). In training it returns a
dict of losses. In evaluation `model(images)` returns for each image `boxes`, `labels`, `scores` and `masks`,
probabilities (M, 1, H, W), all at native size.
"""

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from ..models.backbone import ShapeSpec
from .dense import fcos, retinanet
from .features import head_features
from .losses import GIoUHeads
from .ranks import RCNN, ImageSampler
from .roi_align import PyramidRoIAlign
from .settings import FasterRCNN, MaskRCNN
from .transform import ANCHORS, ROIS, ImageTransform, image_transform

__all__ = ["faster_rcnn", "fcos", "mask_rcnn", "retinanet"]


class StageHead(nn.Module):
    """The backbone's last stage on every pooled RoI, averaged over its positions (arXiv 1512.03385, appendix A)."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, pooled: Tensor) -> Tensor:
        return self.stage(pooled).mean((2, 3))


def faster_rcnn(backbone: nn.Module, num_classes: int, **settings) -> RCNN:
    """Faster R-CNN.

    Args:
        backbone: its features decide what the heads use. Pyramid levels: proposals come from all of them, RoIs
            are pooled from p2 … p5. A single map, such as res5 at `output_stride=16` (DC5) or VGG-16's res4: both
            come from it. res4 and res5 with `box_head="res5"` (C4): both come from res4, and the stage that makes
            res5 moves from the backbone into the box head.
        num_classes: without the background.
        settings: the attributes of `settings.FasterRCNN`.

    Raises `UserError` if the backbone's features are not suitable.
    """
    s = FasterRCNN(**settings)
    shapes, roi_levels, res5, res5_channels = head_features(backbone, s.anchor_sizes, s.box_head)
    channels = shapes[roi_levels[0]].channels
    transform = image_transform(s, backbone)
    head = StageHead(res5) if res5 is not None else TwoMLPHead(channels * s.box_pool_size**2, s.box_head_width)
    rpn = proposal_network(s, channels, transform)
    pooler = PyramidRoIAlign({level: shapes[level].stride for level in roi_levels}, s.box_pool_size)
    predictor = FastRCNNPredictor(res5_channels or s.box_head_width, num_classes + 1)
    return RCNN(backbone, rpn, box_heads(s, pooler, head, predictor, transform), transform)


def proposal_network(s: FasterRCNN, channels: int, transform: ImageTransform) -> RegionProposalNetwork:
    anchors = AnchorGenerator(tuple(map(tuple, s.anchor_sizes)), (tuple(s.aspect_ratios),) * len(s.anchor_sizes))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        s.rpn_fg_iou_thresh,
        s.rpn_bg_iou_thresh,
        s.rpn_batch_size_per_image,
        s.rpn_positive_fraction,
        {"training": s.rpn_pre_nms_top_n_train, "testing": s.rpn_pre_nms_top_n_test},
        {"training": s.rpn_post_nms_top_n_train, "testing": s.rpn_post_nms_top_n_test},
        s.rpn_nms_thresh,
        score_thresh=s.rpn_score_thresh,
    )
    rpn.fg_bg_sampler = ImageSampler(s.rpn_batch_size_per_image, s.rpn_positive_fraction, transform, ANCHORS)
    return rpn


def box_heads(
    s: FasterRCNN, pooler: nn.Module, head: nn.Module, predictor: nn.Module, transform: ImageTransform
) -> RoIHeads:
    heads = (GIoUHeads if s.box_loss == "giou" else RoIHeads)(
        pooler,
        head,
        predictor,
        s.box_fg_iou_thresh,
        s.box_bg_iou_thresh,
        s.box_batch_size_per_image,
        s.box_positive_fraction,
        None,  # torchvision's regression weights, (10, 10, 5, 5)
        s.box_score_thresh,
        s.box_nms_thresh,
        s.box_detections_per_img,
    )
    heads.fg_bg_sampler = ImageSampler(s.box_batch_size_per_image, s.box_positive_fraction, transform, ROIS)
    init_heads(heads)
    return heads


def mask_rcnn(backbone: nn.Module, num_classes: int, **settings) -> RCNN:
    """Mask R-CNN: `faster_rcnn` with a mask branch; `settings` are the attributes of `settings.MaskRCNN`."""
    s = MaskRCNN(**settings)
    mask_settings = {"mask_pool_size", "mask_head_width", "mask_head_depth"}
    model = faster_rcnn(backbone, num_classes, **{k: v for k, v in settings.items() if k not in mask_settings})
    add_mask_branch(model.roi_heads, s, backbone.output_shape(), num_classes)
    return model


def add_mask_branch(heads: RoIHeads, s: MaskRCNN, shapes: dict[str, ShapeSpec], num_classes: int) -> None:
    levels = heads.box_roi_pool.featmap_names
    heads.mask_roi_pool = PyramidRoIAlign({level: shapes[level].stride for level in levels}, s.mask_pool_size)
    if isinstance(heads.box_head, StageHead):
        heads.mask_head, channels = heads.box_head.stage, heads.box_predictor.cls_score.in_features
    else:
        widths = [s.mask_head_width] * s.mask_head_depth
        heads.mask_head, channels = MaskRCNNHeads(shapes[levels[0]].channels, widths, dilation=1), s.mask_head_width
    heads.mask_predictor = MaskRCNNPredictor(channels, s.mask_head_width, num_classes + 1)
    # detectron2's; torchvision's has a std of sqrt(2 / classes), so that masks of few classes start saturated.
    nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight, std=0.001)


def init_heads(roi_heads: RoIHeads) -> None:
    """Gaussians of 0.01 and 0.001 for classes and boxes (Fast R-CNN, arXiv 1504.08083 §3.1), Xavier before them.

    torchvision leaves these to `nn.Linear`, whose initialization is slower to train from scratch.
    """
    if isinstance(roi_heads.box_head, TwoMLPHead):
        for hidden in (roi_heads.box_head.fc6, roi_heads.box_head.fc7):
            nn.init.kaiming_uniform_(hidden.weight, a=1)
            nn.init.zeros_(hidden.bias)
    for layer, std in ((roi_heads.box_predictor.cls_score, 0.01), (roi_heads.box_predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
