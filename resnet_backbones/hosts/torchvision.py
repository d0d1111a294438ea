"""Our backbones in torchvision's own detectors and segmentation models.

    FasterRCNN(backbone("resnet50_fpn"), num_classes=91)
    detector(FasterRCNN, backbone("resnet50"), num_classes=91)     # one map in place of a pyramid
    deeplabv3("resnet50", num_classes=21, output_stride=8)

State_dicts have torchvision's names, so those of its `fasterrcnn_resnet50_fpn`, `deeplabv3_resnet50` … fit. As always
in torchvision, `num_classes` counts the background.
"""

from collections.abc import Mapping, Sequence

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import MultiScaleRoIAlign

from ..backbones import build_backbone
from ..errors import UserError
from ..models.backbone import Backbone, ShapeSpec

RATIOS = (0.5, 1.0, 2.0)
SIZES = (32, 64, 128, 256, 512)  # anchors of a single map, in pixels: those of all levels of a pyramid
OCTAVES = (1, 2 ** (1 / 3), 2 ** (2 / 3))  # RetinaNet's anchors (arXiv 1708.02002 §4)


def backbone(name: str, *, out_features: Sequence[str] | Mapping[str, str] | None = None, **options) -> nn.Module:
    """`build_backbone(name, **options)` with its features named as torchvision's heads look for them.

    For an FPN, p2 … p6 are "0", "1", "2", "3" and "pool", p3 … p7 are "0", "1", "2", "p6" and "p7", and p6 is made from
    p5. Without an FPN there is one map, "0", the last feature. `out_features` chooses others.

    The model takes normalized images; torchvision's detectors normalize by ImageNet's mean and std, unless `detector`
    builds them. Raises `UserError` as `build_backbone` does, and for weights that take BGR images.
    """
    if isinstance(out_features, Mapping):
        return build(name, out_features=out_features, **options)
    if name.endswith("_fpn"):
        levels = sorted({"p2", "p3", "p4", "p5", "p6"} if out_features is None else set(out_features))
        names = {level: str(k) for k, level in enumerate(levels)} | {"p6": "pool"}
        if "p7" in levels:
            names |= {"p6": "p6", "p7": "p7"}
            options.setdefault("fpn_p6_input", "p5")
        return build(name, out_features={level: names[level] for level in levels}, **options)
    if out_features is not None:
        options["out_features"] = out_features
    net = build(name, **options)
    taken = list(net.out_features) if out_features is not None else list(net.out_features)[-1:]
    net.out_features = {feature: str(k) for k, feature in enumerate(taken)}
    return net


def build(name: str, **options) -> nn.Module:
    """`build_backbone`; also raises `UserError` for weights that take BGR images."""
    net = build_backbone(name, **options)
    if net.preprocessing is not None:
        net.preprocessing.for_host("torchvision")
    return net


def detector(
    make: type[FasterRCNN] | type[RetinaNet] | type[FCOS], backbone: nn.Module, num_classes: int, **options
) -> nn.Module:
    """`make(backbone, num_classes, **options)` with anchors and RoI pooling for whatever features the backbone gives.

    torchvision's own defaults are for pyramids of five levels. A pyramid gets the same anchors, by stride; a single map
    those of all levels.

    Args:
        make: torchvision's `FasterRCNN`, `MaskRCNN`, `KeypointRCNN`, `RetinaNet`, `FCOS`, or a class derived from one.
        backbone: of this package, with the same number of channels on all levels.
        num_classes: with the background.
        options: any of `make`. The mean and std of the images are those of the backbone's weights.

    Raises `UserError` for another class or backbone, and for levels that differ in channels.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(f"The backbone is a {type(backbone).__name__}; give one of hosts.torchvision.backbone(name).")
    shapes = backbone.output_shape()
    if len({shape.channels for shape in shapes.values()}) > 1:
        channels = ", ".join(f"{name}: {shape.channels}" for name, shape in shapes.items())
        raise UserError(
            f"torchvision's heads share their weights between levels, which need equally many channels ({channels}): "
            "use a NAME_fpn backbone, or one of the features."
        )
    if not (isinstance(make, type) and issubclass(make, (FasterRCNN, RetinaNet, FCOS))):
        called = getattr(make, "__name__", make)
        raise UserError(f"{called} is not one of torchvision's FasterRCNN, MaskRCNN, KeypointRCNN, RetinaNet and FCOS.")
    check_classes(num_classes)
    defaults = {}
    if backbone.preprocessing is not None:
        defaults["image_mean"], defaults["image_std"] = backbone.preprocessing.for_host("torchvision")
    if issubclass(make, FasterRCNN):
        defaults |= {"rpn_anchor_generator": anchors(shapes, 8, (1,)), "box_roi_pool": pooler(backbone, 7)}
    if issubclass(make, MaskRCNN):
        defaults["mask_roi_pool"] = pooler(backbone, 14)
    if issubclass(make, KeypointRCNN):
        defaults["keypoint_roi_pool"] = pooler(backbone, 14)
    if issubclass(make, RetinaNet):
        defaults["anchor_generator"] = anchors(shapes, 4, OCTAVES)
    if issubclass(make, FCOS):  # one point per position; its size says which objects a level is for
        strides = tuple((shape.stride,) for shape in shapes.values())
        defaults["anchor_generator"] = AnchorGenerator(strides, ((1.0,),) * len(strides))
    return make(backbone, num_classes, **defaults | options)


def anchors(shapes: Mapping[str, ShapeSpec], strides: int, scales: Sequence[float]) -> AnchorGenerator:
    """On each level of a pyramid, anchors of `strides` strides times each of `scales`."""
    bases = SIZES if len(shapes) == 1 else [strides * shape.stride for shape in shapes.values()]
    sizes = [tuple(int(base * scale) for scale in scales) for base in bases]
    if len(shapes) == 1:
        sizes = [sum(sizes, ())]
    return AnchorGenerator(tuple(sizes), (RATIOS,) * len(sizes))


def pooler(backbone: nn.Module, output_size: int) -> MultiScaleRoIAlign:
    """From every level but p6 and p7, which are for proposals (arXiv 1612.03144 §4.2)."""
    levels = [name for feature, name in backbone.out_features.items() if feature not in ("p6", "p7")]
    if not levels:
        raise UserError("RoIs are pooled from p2 … p5, and the backbone gives none of these; add one to out_features.")
    return MultiScaleRoIAlign(levels, output_size, sampling_ratio=2)


def fcn(name: str, num_classes: int, *, aux: bool = False, **options) -> FCN:
    """torchvision's FCN (arXiv 1411.4038) on the last feature of `build_backbone(name, **options)`.

    With `aux` a second head uses the feature before it. Published ones have `output_stride=8`. Raises `UserError`
    as `build_backbone` does, and for an FPN.
    """
    net, head, aux_head = segmentation(name, num_classes, FCNHead, aux, options)
    return FCN(net, head, aux_head)


def deeplabv3(name: str, num_classes: int, *, aux: bool = False, **options) -> DeepLabV3:
    """torchvision's DeepLabV3 (arXiv 1706.05587); arguments and errors as in `fcn`."""
    net, head, aux_head = segmentation(name, num_classes, DeepLabHead, aux, options)
    return DeepLabV3(net, head, aux_head)


def segmentation(
    name: str, num_classes: int, make_head: type[nn.Module], aux: bool, options: dict
) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """The backbone and the heads of FCN and DeepLabV3."""
    check_classes(num_classes)
    net = map_backbone(name, options)
    *_, before, last = net.out_features
    net.out_features = {before: "aux", last: "out"} if aux else {last: "out"}
    shapes = net.output_shape()
    head = make_head(shapes["out"].channels, num_classes)
    return net, head, FCNHead(shapes["aux"].channels, num_classes) if aux else None


def lraspp(name: str, num_classes: int, **options) -> LRASPP:
    """torchvision's Lite R-ASPP (arXiv 1905.02244 §6.4) on res3 and the last feature; errors as in `fcn`.

    The paper's has `output_stride=16`.
    """
    check_classes(num_classes)
    net = map_backbone(name, options)
    net.out_features = {"res3": "low", list(net.out_features)[-1]: "high"}
    shapes = net.output_shape()
    return LRASPP(net, shapes["low"].channels, shapes["high"].channels, num_classes)


def map_backbone(name: str, options: dict) -> nn.Module:
    if name.endswith("_fpn"):
        raise UserError(f"{name}: torchvision's segmentation heads take a feature of a backbone; remove _fpn.")
    if "out_features" in options:
        raise UserError("out_features is what the head looks at, so it is not an option of a segmentation model.")
    return build(name, **options)


def check_classes(num_classes: int) -> None:
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; it must be at least 1, the background included.")
