"""detectron2's detectors over our backbones, in our calling convention.

The functions are the twins of `torchvision.py`: the same settings, inputs and outputs. What differs is detectron2's
mathematics: RoIAlign with aligned pixels, anchors that are not rounded, and masks that are already cut at 0.5.
"""

from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, meta_arch, roi_heads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from .. import distributed
from ..errors import UserError
from ..hosts.detectron2 import Detectron2Backbone
from . import settings as detector_settings
from .detectron2_ranks import GlobalLosses, SeededAnchors, SeededRoIs
from .features import DENSE_LEVELS, HeadFeatures, check_dense_levels, head_features
from .losses import GIOU_WEIGHT
from .settings import FasterRCNN, ImageSettings, MaskRCNN
from .transform import image_transform

__all__ = ["faster_rcnn", "fcos", "mask_rcnn", "retinanet"]


class OurConvention:
    """A mixin for detectron2's meta-architectures: the inputs and outputs of `torchvision.py`."""

    def set_transform(self, s: ImageSettings, backbone: nn.Module) -> nn.Module:
        self.transform = image_transform(s, backbone)
        return self

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        targets = targets if targets is not None else [None] * len(images)
        self.seeds = [(target or {}).get("seed") for target in targets]
        inputs = [self._input(image, target) for image, target in zip(images, targets, strict=True)]
        if self.training:
            with EventStorage():  # which detectron2's losses write to
                return super().forward(inputs)
        return [self._output(output["instances"]) for output in super().forward(inputs)]

    def _input(self, image: Tensor, target: dict | None) -> dict:
        height, width = image.shape[-2:]
        image, target = self.transform.resize(self.transform.normalize(image), dict(target) if target else None)
        item = {"image": image, "height": height, "width": width}
        if self.training:
            size = tuple(image.shape[-2:])
            item["instances"] = Instances(size, gt_boxes=Boxes(target["boxes"]), gt_classes=target["labels"] - 1)
            if "masks" in target:
                item["instances"].gt_masks = BitMasks(target["masks"].bool())
        return item

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """If a batch is split over ranks, pad to the largest size over all of them, as in `ImageTransform`."""
        images = super().preprocess_image(batched_inputs)
        if not (self.training and self.transform.over_ranks):
            return images
        height, width = images.tensor.shape[-2:]
        bottom, right = distributed.largest([height, width])
        return ImageList(F.pad(images.tensor, (0, right - width, 0, bottom - height)), images.image_sizes)

    @staticmethod
    def _output(found: Instances) -> dict[str, Tensor]:
        output = {"boxes": found.pred_boxes.tensor, "labels": found.pred_classes + 1, "scores": found.scores}
        if found.has("pred_masks"):
            output["masks"] = found.pred_masks[:, None].float()
        return output


class OurGeneralizedRCNN(OurConvention, GlobalLosses, GeneralizedRCNN):
    pass


class OurRPN(SeededAnchors, RPN):
    pass


class OurROIHeads(SeededRoIs, roi_heads.StandardROIHeads):
    pass


class OurRes5ROIHeads(SeededRoIs, roi_heads.Res5ROIHeads):
    pass


class OurRetinaNet(OurConvention, meta_arch.retinanet.RetinaNet):
    pass


class OurFCOS(OurConvention, meta_arch.fcos.FCOS):
    pass


# `OurConvention` resizes and normalizes, so detectron2's own must do nothing, with any number of channels.
NO_NORMALIZATION = {"pixel_mean": [0.0], "pixel_std": [1.0]}


def faster_rcnn(backbone: nn.Module, num_classes: int, **settings) -> nn.Module:
    """Faster R-CNN; the arguments are those of `torchvision.faster_rcnn`, but `rpn_score_thresh` must be 0."""
    s = FasterRCNN(**settings)
    if s.rpn_score_thresh:
        raise UserError(f"detector.rpn_score_thresh is {s.rpn_score_thresh}; it must be 0, detectron2 has none.")
    features = head_features(backbone, s.anchor_sizes, s.box_head)
    rpn, heads = proposal_network(s, features), box_heads(s, features, num_classes)
    wrapped = Detectron2Backbone(backbone)
    model = OurGeneralizedRCNN(backbone=wrapped, proposal_generator=rpn, roi_heads=heads, **NO_NORMALIZATION)
    return model.set_transform(s, backbone)


def proposal_network(s: FasterRCNN, features: HeadFeatures) -> RPN:
    shapes, roi_levels, _, _ = features
    anchors = anchor_generator(s.anchor_sizes, s.aspect_ratios, shapes)
    return OurRPN(
        in_features=list(shapes),
        head=StandardRPNHead(in_channels=shapes[roi_levels[0]].channels, num_anchors=anchors.num_anchors[0]),
        anchor_generator=anchors,
        anchor_matcher=matcher(s.rpn_bg_iou_thresh, s.rpn_fg_iou_thresh, allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=s.rpn_batch_size_per_image,
        positive_fraction=s.rpn_positive_fraction,
        pre_nms_topk=(s.rpn_pre_nms_top_n_train, s.rpn_pre_nms_top_n_test),
        post_nms_topk=(s.rpn_post_nms_top_n_train, s.rpn_post_nms_top_n_test),
        nms_thresh=s.rpn_nms_thresh,
    )


def box_heads(s: FasterRCNN, features: HeadFeatures, num_classes: int) -> roi_heads.ROIHeads:
    shapes, roi_levels, res5, res5_channels = features
    predictor = roi_heads.FastRCNNOutputLayers(
        ShapeSpec(channels=res5_channels or s.box_head_width),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
        test_score_thresh=s.box_score_thresh,
        test_nms_thresh=s.box_nms_thresh,
        test_topk_per_image=s.box_detections_per_img,
        box_reg_loss_type=s.box_loss,
        loss_weight=1.0 if s.box_loss == "smooth_l1" else {"loss_box_reg": GIOU_WEIGHT},
    )
    sampling = {
        "num_classes": num_classes,
        "batch_size_per_image": s.box_batch_size_per_image,
        "positive_fraction": s.box_positive_fraction,
        "proposal_matcher": matcher(s.box_bg_iou_thresh, s.box_fg_iou_thresh),
    }
    pooler = roi_pooler(s.box_pool_size, shapes, roi_levels)
    if res5 is not None:
        return OurRes5ROIHeads(in_features=roi_levels, pooler=pooler, res5=res5, box_predictor=predictor, **sampling)
    pooled = ShapeSpec(channels=shapes[roi_levels[0]].channels, height=s.box_pool_size, width=s.box_pool_size)
    head = roi_heads.FastRCNNConvFCHead(pooled, conv_dims=[], fc_dims=[s.box_head_width, s.box_head_width])
    return OurROIHeads(
        box_in_features=roi_levels, box_pooler=pooler, box_head=head, box_predictor=predictor, **sampling
    )


def mask_rcnn(backbone: nn.Module, num_classes: int, **settings) -> nn.Module:
    """Mask R-CNN; the arguments are those of `torchvision.mask_rcnn`. With `box_head="res5"` the mask branch takes the
    box branch's pooled features, as always in detectron2, and `mask_pool_size` has no effect.
    """
    s = MaskRCNN(**settings)
    mask_settings = {"mask_pool_size", "mask_head_width", "mask_head_depth"}
    model = faster_rcnn(backbone, num_classes, **{k: v for k, v in settings.items() if k not in mask_settings})
    heads = model.roi_heads
    if isinstance(heads, roi_heads.Res5ROIHeads):
        channels, dims = heads.box_predictor.cls_score.in_features, [s.mask_head_width]
    else:
        shapes = model.backbone.output_shape()
        channels, dims = shapes[heads.box_in_features[0]].channels, [s.mask_head_width] * (s.mask_head_depth + 1)
        heads.mask_in_features = heads.box_in_features
        heads.mask_pooler = roi_pooler(s.mask_pool_size, shapes, heads.box_in_features)
    pooled = ShapeSpec(channels=channels, height=s.mask_pool_size, width=s.mask_pool_size)
    heads.mask_head = roi_heads.MaskRCNNConvUpsampleHead(pooled, num_classes=num_classes, conv_dims=dims)
    heads.mask_on = True
    return model


def retinanet(backbone: nn.Module, num_classes: int, **settings) -> nn.Module:
    """RetinaNet; the arguments are those of `torchvision.retinanet`."""
    s = detector_settings.RetinaNet(**settings)
    check_dense_levels(backbone, s.anchor_sizes)
    wrapped = Detectron2Backbone(backbone)
    shapes = wrapped.output_shape()
    anchors = anchor_generator(s.anchor_sizes, s.aspect_ratios, shapes)
    head = meta_arch.retinanet.RetinaNetHead(
        input_shape=list(shapes.values()),
        num_classes=num_classes,
        num_anchors=anchors.num_anchors[0],
        conv_dims=[shapes["p3"].channels] * 4,
    )
    model = OurRetinaNet(
        backbone=wrapped,
        head=head,
        head_in_features=DENSE_LEVELS,
        anchor_generator=anchors,
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=matcher(s.box_bg_iou_thresh, s.box_fg_iou_thresh, allow_low_quality_matches=True),
        num_classes=num_classes,
        test_score_thresh=s.box_score_thresh,
        test_topk_candidates=s.topk_candidates,
        test_nms_thresh=s.box_nms_thresh,
        max_detections_per_image=s.box_detections_per_img,
        **NO_NORMALIZATION,
    )
    return model.set_transform(s, backbone)


def fcos(backbone: nn.Module, num_classes: int, **settings) -> nn.Module:
    """FCOS; the arguments are those of `torchvision.fcos`."""
    s = detector_settings.FCOS(**settings)
    check_dense_levels(backbone)
    wrapped = Detectron2Backbone(backbone)
    shapes = list(wrapped.output_shape().values())
    model = OurFCOS(
        backbone=wrapped,
        head=meta_arch.fcos.FCOSHead(input_shape=shapes, num_classes=num_classes, conv_dims=[shapes[0].channels] * 4),
        head_in_features=DENSE_LEVELS,
        box2box_transform=Box2BoxTransformLinear(normalize_by_size=True),
        num_classes=num_classes,
        center_sampling_radius=s.center_sampling_radius,
        test_score_thresh=s.box_score_thresh,
        test_topk_candidates=s.topk_candidates,
        test_nms_thresh=s.box_nms_thresh,
        max_detections_per_image=s.box_detections_per_img,
        **NO_NORMALIZATION,
    )
    return model.set_transform(s, backbone)


def anchor_generator(sizes: Sequence, ratios: Sequence[float], shapes: dict) -> DefaultAnchorGenerator:
    return DefaultAnchorGenerator(
        sizes=[list(level) for level in sizes],
        aspect_ratios=[list(ratios)],
        strides=[shape.stride for shape in shapes.values()],
        offset=0.0,
    )


def matcher(background: float, foreground: float, allow_low_quality_matches: bool = False) -> Matcher:
    between = background < foreground
    thresholds, labels = ([background, foreground], [0, -1, 1]) if between else ([foreground], [0, 1])
    return Matcher(thresholds, labels, allow_low_quality_matches)


def roi_pooler(size: int, shapes: dict, levels: list[str]) -> ROIPooler:
    scales = [1 / shapes[level].stride for level in levels]
    return ROIPooler(output_size=size, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")
