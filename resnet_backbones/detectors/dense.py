"""The one-stage detectors of torchvision over P3 … P7: RetinaNet (arXiv 1708.02002) and FCOS (arXiv 1904.01355).

The calling convention is that of `torchvision.py`. torchvision's own count classes from 0, or keep an unused channel
for the background; here they have `num_classes` channels, and labels are shifted on the way in and out.
"""

from torch import Tensor, nn
from torchvision.models.detection import fcos as torchvision_fcos
from torchvision.models.detection import retinanet as torchvision_retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from . import settings as detector_settings
from .features import check_dense_levels
from .ranks import GlobalFCOSHead
from .transform import image_transform


class LabelsFromOne:
    """A mixin for detectors whose labels count from 0 and whose losses lack the prefix `loss_`."""

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        if targets is not None:
            targets = [target | {"labels": target["labels"] - 1} for target in targets]
        outputs = super().forward(images, targets)
        if self.training:
            return {f"loss_{name}": loss for name, loss in outputs.items()}
        return [output | {"labels": output["labels"] + 1} for output in outputs]


class RetinaNet(LabelsFromOne, torchvision_retinanet.RetinaNet):
    pass


class FCOS(LabelsFromOne, torchvision_fcos.FCOS):
    pass


def retinanet(backbone: nn.Module, num_classes: int, **settings) -> RetinaNet:
    """RetinaNet; `settings` are the attributes of `settings.RetinaNet`.

    Raises `UserError` if the backbone's features are not p3 … p7.
    """
    s = detector_settings.RetinaNet(**settings)
    check_dense_levels(backbone, s.anchor_sizes)
    anchors = AnchorGenerator(tuple(map(tuple, s.anchor_sizes)), (tuple(s.aspect_ratios),) * len(s.anchor_sizes))
    model = RetinaNet(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=torchvision_retinanet.RetinaNetHead(
            backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes
        ),
        score_thresh=s.box_score_thresh,
        nms_thresh=s.box_nms_thresh,
        detections_per_img=s.box_detections_per_img,
        fg_iou_thresh=s.box_fg_iou_thresh,
        bg_iou_thresh=s.box_bg_iou_thresh,
        topk_candidates=s.topk_candidates,
    )
    model.transform = image_transform(s, backbone)
    return model


def fcos(backbone: nn.Module, num_classes: int, **settings) -> FCOS:
    """FCOS; `settings` are the attributes of `settings.FCOS`.

    Raises `UserError` if the backbone's features are not p3 … p7.
    """
    s = detector_settings.FCOS(**settings)
    check_dense_levels(backbone)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)  # FCOS's own: one box per position
    model = FCOS(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=GlobalFCOSHead(backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes),
        center_sampling_radius=s.center_sampling_radius,
        score_thresh=s.box_score_thresh,
        nms_thresh=s.box_nms_thresh,
        detections_per_img=s.box_detections_per_img,
        topk_candidates=s.topk_candidates,
    )
    model.transform = image_transform(s, backbone)
    return model
