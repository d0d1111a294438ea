"""The same nets from other libraries: all norms FrozenBN, stem and res2 frozen, our weights."""

import importlib
from types import ModuleType

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from resnet_backbones.errors import UserError
from resnet_backbones.optional import import_timm

BN_IN_EVAL = "torchvision, BN in eval mode"  # the other way to fix statistics, which keeps more for backward
LAYERS = {f"layer{k}": f"res{k + 1}" for k in range(1, 5)}


class MissingError(Exception):
    """Why a library takes no part in a comparison."""


def import_detectron2() -> ModuleType:
    try:
        return importlib.import_module(f"{__package__}.detectron2")
    except ImportError:
        raise MissingError("not installed") from None


def peer_backbone(peer: str, name: str, state: dict[str, Tensor]) -> nn.Module:
    """The backbone `name` of torchvision, detectron2 or timm, giving four features from a batch of images.

    `state` is ours. Raises `MissingError` if the library is not installed or has no such net.
    """
    if peer == "detectron2":
        return import_detectron2().own_backbone(name, state)
    net = _torchvision_backbone(name) if peer == "torchvision" else _timm_backbone(name)
    return _with_weights(net, state)


def peer_fpn(peer: str, name: str, state: dict[str, Tensor]) -> nn.Module:
    """The same with an FPN, giving p2 … p6; timm has none."""
    if peer == "detectron2":
        return import_detectron2().own_fpn(name, state)
    return _with_weights(_torchvision_fpn(name, FrozenBatchNorm2d), state)


def peer_detector(peer: str, name: str, classes: int, short_side: int, state: dict[str, Tensor]) -> nn.Module:
    """Faster R-CNN with an FPN and the same settings, called like torchvision's; `state` is torchvision's."""
    if peer == "detectron2":
        return import_detectron2().own_detector(name, classes, short_side, state)
    # `fasterrcnn_resnet50_fpn` itself has FrozenBN only if it loads weights.
    body = _torchvision_fpn(name, nn.BatchNorm2d if peer == BN_IN_EVAL else FrozenBatchNorm2d)
    model = FasterRCNN(body, classes + 1, min_size=short_side, max_size=longest_side(short_side))
    return _with_weights(model, state)


def longest_side(short_side: int) -> int:
    return round(short_side * 1333 / 800)


def _torchvision_fpn(name: str, norm: type[nn.Module]) -> nn.Module:
    _check_torchvision(name)
    return resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norm, trainable_layers=3)


def _torchvision_backbone(name: str) -> nn.Module:
    _check_torchvision(name)
    net = torchvision.models.get_model(name, weights=None, norm_layer=FrozenBatchNorm2d)
    for frozen in (net.conv1, net.layer1):
        frozen.requires_grad_(False)
    return IntermediateLayerGetter(net, LAYERS)


def _check_torchvision(name: str) -> None:
    known = torchvision.models.list_models()
    if name not in known or torchvision.models.get_model_builder(name).__module__ != "torchvision.models.resnet":
        raise MissingError("has no such ResNet")


def _timm_backbone(name: str) -> nn.Module:
    try:
        timm = import_timm()
    except UserError:
        raise MissingError("not installed") from None
    if not timm.is_model(name):
        raise MissingError("has no such net")
    net = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    net = timm.layers.freeze_batch_norm_2d(net)
    for child, module in net.named_children():
        if child in ("conv1", "layer1"):
            module.requires_grad_(False)
    return net


def _with_weights(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    try:
        net.load_state_dict(state)
    except RuntimeError:
        raise MissingError("has another net of this name") from None
    return net
