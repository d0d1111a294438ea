"""Our backbones in detectron2: its detectors in our calling convention, and every name in its BACKBONE_REGISTRY.

The functions are the twins of `torchvision.py`: the same arguments, inputs and outputs. What differs is detectron2's
mathematics: RoIAlign with aligned pixels, anchors that are not rounded, and masks that are already cut at 0.5.

`import resnet_backbones.detectors.detectron2` registers "NAME", "NAME_fpn", "NAME_c4" (res4 alone) and
"NAME_retinanet_fpn" for configs (`cfg.MODEL.BACKBONE.NAME`); `build_backbone(name, …)` is for LazyConfigs.
"""

import functools
from collections.abc import Sequence
from types import SimpleNamespace

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    ROI_HEADS_REGISTRY,
    Backbone,
    GeneralizedRCNN,
    build_resnet_backbone,
    meta_arch,
    roi_heads,
)
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from .. import backbones, distributed
from ..errors import UserError
from ..models.fpn import FPN
from ..models.layers import split_last_stage
from ..models.naming import hide_child
from ..preprocessing import Preprocessing, detector_preprocessing
from . import torchvision
from .detectron2_config import FORMS, build_from
from .detectron2_sampling import SeededAnchors, SeededRoIs, ShardedLosses
from .features import DENSE_LEVELS, check_dense_levels, head_features
from .transform import ImageTransform
from .twins import same_arguments

__all__ = ["add_config", "build_backbone", "faster_rcnn", "fcos", "mask_rcnn", "retinanet"]


class OurBackbone(Backbone):
    """A backbone of ours as one of detectron2's; its parameters keep their names."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.architecture, self.preprocessing = net.architecture, net.preprocessing
        hide_child(self, "net")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.net(images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {k: ShapeSpec(channels=s.channels, stride=s.stride) for k, s in self.net.output_shape().items()}

    @property
    def size_divisibility(self) -> int:
        """What detectron2 pads a pyramid's images to. Ours needs no padding, but its results would differ."""
        return getattr(self.net, "size_divisible", 32 if isinstance(self.net, FPN) else 0)


def build_backbone(name: str, **options) -> OurBackbone:
    """`resnet_backbones.build_backbone` for detectron2, as in `L(build_backbone)(name="preact_resnet50_fpn")`."""
    return OurBackbone(backbones.build_backbone(name, **options))


def add_config(cfg: CfgNode) -> None:
    """Add the one key that detectron2 lacks: MODEL.BACKBONE.WEIGHTS, as `weights` of `resnet_backbones.build_backbone`.

    Without it weights come through MODEL.WEIGHTS, by detectron2's checkpointer and under our names.
    """
    cfg.MODEL.BACKBONE.WEIGHTS = ""


def _from_config(name: str, form: str, cfg: CfgNode, input_shape: ShapeSpec) -> OurBackbone:
    return OurBackbone(build_from(cfg, name, form, input_shape.channels))


for _name in backbones.list_backbones():
    for _suffix, _form in FORMS.items():
        # NAME_fpn stands for itself in our registry, too; the nets for CIFAR have no pyramid and no res5.
        if not _name.endswith("_fpn") and (not _suffix or f"{_name}_fpn" in backbones.BACKBONES):
            BACKBONE_REGISTRY._do_register(_name + _suffix, functools.partial(_from_config, _name, _form))


@ROI_HEADS_REGISTRY.register()
class BackboneRes5ROIHeads(roi_heads.Res5ROIHeads):
    """For "NAME_c4": detectron2's C4 heads with the backbone's own last stage."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        net = build_from(cfg, cfg.MODEL.BACKBONE.NAME.removesuffix("_c4"), "res5", len(cfg.MODEL.PIXEL_MEAN))
        channels = net.output_shape()["res5"].channels
        return split_last_stage(net), channels


class OurConvention:
    """In front of a meta-architecture of detectron2: the inputs and outputs of `torchvision.py`."""

    def set_transform(self, min_size: Sequence[int], max_size: int, preprocessing: Preprocessing) -> nn.Module:
        self.transform = ImageTransform(min_size, max_size, preprocessing)
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
        """In training padded to the size of the whole batch over all ranks, as in `ImageTransform`."""
        images = super().preprocess_image(batched_inputs)
        if not self.training:
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


class OurGeneralizedRCNN(OurConvention, ShardedLosses, GeneralizedRCNN):
    pass


class SeededRPN(SeededAnchors, RPN):
    pass


class SeededROIHeads(SeededRoIs, roi_heads.StandardROIHeads):
    pass


class SeededRes5ROIHeads(SeededRoIs, roi_heads.Res5ROIHeads):
    pass


class OurRetinaNet(OurConvention, meta_arch.retinanet.RetinaNet):
    pass


class OurFCOS(OurConvention, meta_arch.fcos.FCOS):
    pass


# Resizing and normalisation are `OurConvention`'s, so detectron2's own must do nothing.
NO_NORMALISATION = {"pixel_mean": [0.0, 0.0, 0.0], "pixel_std": [1.0, 1.0, 1.0]}


@same_arguments(torchvision.faster_rcnn)
def faster_rcnn(a: SimpleNamespace) -> nn.Module:
    """Faster R-CNN; the arguments are those of `torchvision.faster_rcnn`, but `rpn_score_thresh` must be 0."""
    if a.rpn_score_thresh:
        raise UserError(f"detector.rpn_score_thresh is {a.rpn_score_thresh}; it must be 0, for detectron2 has none.")
    preprocessing = detector_preprocessing(a.backbone, a.image_mean, a.image_std)
    shapes, roi_levels, res5, res5_channels = head_features(a.backbone, a.anchor_sizes, a.box_head)
    channels = shapes[roi_levels[0]].channels
    anchors = _anchors(a.anchor_sizes, a.aspect_ratios, shapes)
    rpn = SeededRPN(
        in_features=list(shapes),
        head=StandardRPNHead(in_channels=channels, num_anchors=anchors.num_anchors[0]),
        anchor_generator=anchors,
        anchor_matcher=_matcher(a.rpn_bg_iou_thresh, a.rpn_fg_iou_thresh, allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=a.rpn_batch_size_per_image,
        positive_fraction=a.rpn_positive_fraction,
        pre_nms_topk=(a.rpn_pre_nms_top_n_train, a.rpn_pre_nms_top_n_test),
        post_nms_topk=(a.rpn_post_nms_top_n_train, a.rpn_post_nms_top_n_test),
        nms_thresh=a.rpn_nms_thresh,
    )
    predictor = roi_heads.FastRCNNOutputLayers(
        ShapeSpec(channels=res5_channels or a.box_head_width),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=a.num_classes,
        test_score_thresh=a.box_score_thresh,
        test_nms_thresh=a.box_nms_thresh,
        test_topk_per_image=a.box_detections_per_img,
    )
    sampling = {
        "num_classes": a.num_classes,
        "batch_size_per_image": a.box_batch_size_per_image,
        "positive_fraction": a.box_positive_fraction,
        "proposal_matcher": _matcher(a.box_bg_iou_thresh, a.box_fg_iou_thresh),
    }
    pooler = _pooler(a.box_pool_size, shapes, roi_levels)
    if res5 is not None:
        heads = SeededRes5ROIHeads(
            in_features=roi_levels, pooler=pooler, res5=res5, box_predictor=predictor, **sampling
        )
    else:
        pooled = ShapeSpec(channels=channels, height=a.box_pool_size, width=a.box_pool_size)
        heads = SeededROIHeads(
            box_in_features=roi_levels,
            box_pooler=pooler,
            box_head=roi_heads.FastRCNNConvFCHead(pooled, conv_dims=[], fc_dims=[a.box_head_width, a.box_head_width]),
            box_predictor=predictor,
            **sampling,
        )
    model = OurGeneralizedRCNN(
        backbone=OurBackbone(a.backbone), proposal_generator=rpn, roi_heads=heads, **NO_NORMALISATION
    )
    return model.set_transform(a.min_size, a.max_size, preprocessing)


def mask_rcnn(
    backbone: nn.Module,
    num_classes: int,
    *,
    mask_pool_size: int = 14,
    mask_head_width: int = 256,
    mask_head_depth: int = 4,
    **settings,
) -> nn.Module:
    """Mask R-CNN; the arguments are those of `torchvision.mask_rcnn`. With `box_head="res5"` the mask branch takes the
    box branch's pooled features, as always in detectron2, and `mask_pool_size` means nothing.
    """
    model = faster_rcnn(backbone, num_classes, **settings)
    heads = model.roi_heads
    if isinstance(heads, roi_heads.Res5ROIHeads):
        channels, dims = heads.box_predictor.cls_score.in_features, [mask_head_width]
    else:
        shapes = model.backbone.output_shape()
        channels, dims = shapes[heads.box_in_features[0]].channels, [mask_head_width] * (mask_head_depth + 1)
        heads.mask_in_features = heads.box_in_features
        heads.mask_pooler = _pooler(mask_pool_size, shapes, heads.box_in_features)
    pooled = ShapeSpec(channels=channels, height=mask_pool_size, width=mask_pool_size)
    heads.mask_head = roi_heads.MaskRCNNConvUpsampleHead(pooled, num_classes=num_classes, conv_dims=dims)
    heads.mask_on = True
    return model


@same_arguments(torchvision.retinanet)
def retinanet(a: SimpleNamespace) -> nn.Module:
    """RetinaNet; the arguments are those of `torchvision.retinanet`."""
    check_dense_levels(a.backbone, a.anchor_sizes)
    preprocessing, backbone = detector_preprocessing(a.backbone, a.image_mean, a.image_std), OurBackbone(a.backbone)
    shapes = backbone.output_shape()
    anchors = _anchors(a.anchor_sizes, a.aspect_ratios, shapes)
    head = meta_arch.retinanet.RetinaNetHead(
        input_shape=list(shapes.values()),
        num_classes=a.num_classes,
        num_anchors=anchors.num_anchors[0],
        conv_dims=[shapes["p3"].channels] * 4,
    )
    model = OurRetinaNet(
        backbone=backbone,
        head=head,
        head_in_features=DENSE_LEVELS,
        anchor_generator=anchors,
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=_matcher(a.box_bg_iou_thresh, a.box_fg_iou_thresh, allow_low_quality_matches=True),
        num_classes=a.num_classes,
        test_score_thresh=a.box_score_thresh,
        test_topk_candidates=a.topk_candidates,
        test_nms_thresh=a.box_nms_thresh,
        max_detections_per_image=a.box_detections_per_img,
        **NO_NORMALISATION,
    )
    return model.set_transform(a.min_size, a.max_size, preprocessing)


@same_arguments(torchvision.fcos)
def fcos(a: SimpleNamespace) -> nn.Module:
    """FCOS; the arguments are those of `torchvision.fcos`."""
    check_dense_levels(a.backbone)
    preprocessing, backbone = detector_preprocessing(a.backbone, a.image_mean, a.image_std), OurBackbone(a.backbone)
    shapes = list(backbone.output_shape().values())
    model = OurFCOS(
        backbone=backbone,
        head=meta_arch.fcos.FCOSHead(input_shape=shapes, num_classes=a.num_classes, conv_dims=[shapes[0].channels] * 4),
        head_in_features=DENSE_LEVELS,
        box2box_transform=Box2BoxTransformLinear(normalize_by_size=True),
        num_classes=a.num_classes,
        center_sampling_radius=a.center_sampling_radius,
        test_score_thresh=a.box_score_thresh,
        test_topk_candidates=a.topk_candidates,
        test_nms_thresh=a.box_nms_thresh,
        max_detections_per_image=a.box_detections_per_img,
        **NO_NORMALISATION,
    )
    return model.set_transform(a.min_size, a.max_size, preprocessing)


def _anchors(sizes: Sequence, ratios: Sequence[float], shapes: dict) -> DefaultAnchorGenerator:
    return DefaultAnchorGenerator(
        sizes=[list(level) for level in sizes],
        aspect_ratios=[list(ratios)],
        strides=[shape.stride for shape in shapes.values()],
        offset=0.0,
    )


def _matcher(background: float, foreground: float, allow_low_quality_matches: bool = False) -> Matcher:
    between = background < foreground
    thresholds, labels = ([background, foreground], [0, -1, 1]) if between else ([foreground], [0, 1])
    return Matcher(thresholds, labels, allow_low_quality_matches)


def _pooler(size: int, shapes: dict, levels: list[str]) -> ROIPooler:
    scales = [1 / shapes[level].stride for level in levels]
    return ROIPooler(output_size=size, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")


def own_resnet(depth: int, norm: str = "FrozenBN", **settings) -> Backbone:
    """detectron2's own ResNet giving res2 … res5, to compare with; `settings` are keys of its MODEL.RESNETS."""
    cfg = get_cfg()
    widths = {"RES2_OUT_CHANNELS": 64} if depth < 50 else {}
    values = {"DEPTH": depth, "NORM": norm, "OUT_FEATURES": ["res2", "res3", "res4", "res5"], **widths, **settings}
    for key, value in values.items():
        cfg.MODEL.RESNETS[key] = value
    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
