"""The settings of each detector, the same in both head libraries; defaults are torchvision's, for an FPN."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(kw_only=True)
class ImageSettings:
    """What every detector does to its images.

    Attributes:
        min_size, max_size: of the shorter and the longer side in pixels; each training image draws one of `min_size`,
            evaluation takes the last.
        image_mean, image_std: of images in [0, 1], one number for each channel that the backbone takes, of RGB three;
            None for those that came with the backbone's weights, or ImageNet's, averaged where there is no RGB.
    """

    min_size: Sequence[int] = (800,)
    max_size: int = 1333
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None


@dataclass(kw_only=True)
class FasterRCNN(ImageSettings):
    """Faster R-CNN (arXiv 1506.01497).

    Attributes:
        anchor_sizes: for each pyramid level, square roots of anchor areas in pixels.
        aspect_ratios: height / width, on every level.
        box_head: "mlp", two hidden layers of `box_head_width`, or "res5", the backbone's last stage.
        box_pool_size: side of a pooled RoI.
        box_loss: "smooth_l1" or "giou" (1902.09630), of the box head.
        others: as in `torchvision.models.detection.FasterRCNN`.
    """

    anchor_sizes: Sequence[Sequence[int]] = ((32,), (64,), (128,), (256,), (512,))
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    rpn_pre_nms_top_n_train: int = 2000  # per level
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000  # per image
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_score_thresh: float = 0.0
    box_head: str = "mlp"
    box_pool_size: int = 7
    box_head_width: int = 1024
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    box_loss: str = "smooth_l1"


@dataclass(kw_only=True)
class MaskRCNN(FasterRCNN):
    """Mask R-CNN (arXiv 1703.06870): Faster R-CNN with a mask branch beside the box branch.

    Attributes:
        mask_pool_size: side of an RoI pooled for the mask; the predicted mask has twice that, with `box_head="res5"`
            as much.
        mask_head_width, mask_head_depth: channels and number of the mask head's 3x3 convolutions. With
            `box_head="res5"` the shared res5 takes their place, and the width is that of the last layer alone
            (Figure 4 left).
    """

    mask_pool_size: int = 14
    mask_head_width: int = 256
    mask_head_depth: int = 4


@dataclass(kw_only=True)
class RetinaNet(ImageSettings):
    """RetinaNet (arXiv 1708.02002): two heads of four convolutions on each of p3 … p7, focal loss.

    Attributes:
        anchor_sizes: for each of p3 … p7; three sizes per level, 2^(1/3) apart, in the paper (§4).
        box_fg_iou_thresh, box_bg_iou_thresh: anchors are foreground from the first IoU on, background below the
            second.
        topk_candidates: kept per level before NMS.
    """

    anchor_sizes: Sequence[Sequence[int]] = (
        (32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812),
    )  # fmt: skip
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.4
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    topk_candidates: int = 1000


@dataclass(kw_only=True)
class FCOS(ImageSettings):
    """FCOS (arXiv 1904.01355): no anchors; every position in the center of an object regresses its four sides.

    Attributes:
        center_sampling_radius: in strides, around an object's center; positions within it are foreground.
        topk_candidates: kept per level before NMS.
    """

    center_sampling_radius: float = 1.5
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.6
    box_detections_per_img: int = 100
    topk_candidates: int = 1000


SETTINGS = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN, "retinanet": RetinaNet, "fcos": FCOS}
