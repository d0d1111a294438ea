"""detectron2's own nets; imported only by `peers.py`, and only where it is installed."""

import re

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, MapDataset
from detectron2.data.common import DatasetFromList
from detectron2.data.datasets import load_coco_json
from detectron2.data.transforms import RandomFlip
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from resnet_backbones.weights import Checkpoint, from_ours

from .peers import MissingError, longest_side

DEPTHS = (18, 34, 50, 101, 152)


def own_backbone(name: str, state: dict[str, Tensor]) -> nn.Module:
    return _with_weights(build_backbone(_config(name, "build_resnet_backbone"), ShapeSpec(channels=3)), state)


def own_fpn(name: str, state: dict[str, Tensor]) -> nn.Module:
    return _with_weights(build_backbone(_config(name, "build_resnet_fpn_backbone"), ShapeSpec(channels=3)), state)


def own_detector(name: str, classes: int, short_side: int, state: dict[str, Tensor]) -> nn.Module:
    """Its GeneralizedRCNN with torchvision's settings, for images that need no resizing, called as torchvision's."""
    cfg = _config(name, "build_resnet_fpn_backbone")
    levels = ["p2", "p3", "p4", "p5", "p6"]
    settings = {
        "DEVICE": "cpu",
        "PIXEL_MEAN": [255 * v for v in IMAGENET_MEAN],
        "PIXEL_STD": [255 * v for v in IMAGENET_STD],
        "ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "RPN.IN_FEATURES": levels,
        "RPN.PRE_NMS_TOPK_TRAIN": 2000,  # per level
        "RPN.PRE_NMS_TOPK_TEST": 1000,
        "RPN.POST_NMS_TOPK_TRAIN": 2000,  # per image
        "RPN.POST_NMS_TOPK_TEST": 1000,
        "ROI_HEADS.NAME": "StandardROIHeads",
        "ROI_HEADS.IN_FEATURES": levels[:4],
        "ROI_HEADS.NUM_CLASSES": classes,
        "ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "ROI_BOX_HEAD.NUM_FC": 2,
        "ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    }
    cfg.merge_from_list([v for key, value in settings.items() for v in (f"MODEL.{key}", value)])
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = short_side, longest_side(short_side)
    return Convention(_with_weights(build_model(cfg), state))


def own_loader(annotations: str, folder: str, batch_size: int) -> DataLoader:
    """Its mapper over its list of a COCO file, with flips and without resizing."""
    mapper = DatasetMapper(is_train=True, augmentations=[RandomFlip()], image_format="RGB")
    data = MapDataset(DatasetFromList(load_coco_json(annotations, folder), copy=False), mapper)
    return DataLoader(data, batch_size, shuffle=True, collate_fn=list)


class Convention(nn.Module):
    """torchvision's inputs for a detector of detectron2, which keeps its own outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        items = []
        for k, image in enumerate(images):
            height, width = image.shape[1:]
            items.append({"image": 255 * image, "height": height, "width": width})
            if targets is not None:
                boxes, classes = Boxes(targets[k]["boxes"]), targets[k]["labels"] - 1
                items[k]["instances"] = Instances((height, width), gt_boxes=boxes, gt_classes=classes)
        with EventStorage():  # which its losses write to
            return self.model(items)


def _config(name: str, builder: str) -> CfgNode:
    match = re.fullmatch(r"res(?:net|next)(\d+)(?:_(\d+)x(\d+)d)?", name)
    if match is None or int(match[1]) not in DEPTHS:
        raise MissingError("has no such ResNet")
    depth, groups, width = (int(v) if v else None for v in match.groups())
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = builder, 2
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.OUT_FEATURES = depth, "FrozenBN", ["res2", "res3", "res4", "res5"]
    resnets.STRIDE_IN_1X1 = False  # its default has fewer multiplications
    resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = groups or 1, width or 64
    if depth < 50:
        resnets.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.IN_FEATURES = resnets.OUT_FEATURES
    return cfg


def _with_weights(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    missing = net.load_state_dict(from_ours(Checkpoint(state, {}), "detectron2").checkpoint.state, strict=False)[0]
    assert all("anchor" in name or "pixel" in name for name in missing), missing
    return net
