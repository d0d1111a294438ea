"""Every registered name in every host: all are built, and one per family trains for a step.

A host that is not installed is skipped. `make test` has few of the names, `make test-slow` all of them.
"""

import importlib
from collections import Counter
from fnmatch import fnmatch

import pytest
import torch
from conftest import REPRESENTATIVES
from torch import Tensor, nn
from torchvision.models import detection

from resnet_backbones import build_backbone, list_backbones

FEW = ["resnet18", "preact_resnet18", "convnext_tiny", "cifar_resnet20"]
NAMES = [name for name in list_backbones() if not name.endswith("_fpn")]
MEMBERS = [*REPRESENTATIVES, "cifar_resnet20"]
DENSE = ["p3", "p4", "p5", "p6", "p7"]
IMAGES = (2, 3, 64, 96)

NO_PYRAMID = "three stages of strides 1, 2 and 4, so no FPN and no features of stride 8 to 32"
EXCLUDED = {
    "FasterRCNN RetinaNet MaskRCNN KeypointRCNN FCOS Detectron2FPN": {"cifar_*": NO_PYRAMID},
    "RTDetrForObjectDetection UperNetForSemanticSegmentation": {"cifar_*": NO_PYRAMID},
    "Unet": {
        "cifar_*": "smp's decoders want a feature of every stride from 2 or 4 to 32, these nets have 1, 2 and 4",
        "alexnet": "its maps are smaller than the image / stride, and smp's decoder joins maps of exact sizes",
    },
}


def cross_entropy(scores: Tensor) -> Tensor:
    labels = torch.zeros(len(scores), *scores.shape[2:], dtype=torch.long, device=scores.device)
    return nn.functional.cross_entropy(scores, labels)


def torchvision_detector(make: str, name: str):
    host = importlib.import_module("resnet_backbones.hosts.torchvision")
    levels = DENSE if make in ("RetinaNet", "FCOS") else None
    net = host.backbone(f"{name}_fpn", out_features=levels, fpn_channels=32)
    model = getattr(detection, make)(net, 2, min_size=64, max_size=96)

    def loss() -> Tensor:
        masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
        masks[0, 10:50, 10:80] = 1
        boxes, keypoints = torch.tensor([[10.0, 10, 80, 50]]), torch.tensor([[[40.0, 30, 1]] * 17])
        target = {"boxes": boxes, "labels": torch.tensor([1]), "masks": masks, "keypoints": keypoints}
        return sum(model(list(torch.rand(IMAGES)), [target, target]).values())

    return model, net, loss


def torchvision_segmentation(make: str, name: str):
    model = getattr(importlib.import_module("resnet_backbones.hosts.torchvision"), make)(name, 3)
    return model, model.backbone, lambda: cross_entropy(model(torch.rand(IMAGES))["out"])


def timm_classifier(make: str, name: str):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    importlib.import_module("resnet_backbones.hosts.timm")
    model = timm.create_model(f"rb_{name}", num_classes=5)
    return model, model, lambda: cross_entropy(model(torch.rand(IMAGES)))


def smp_unet(make: str, name: str):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")
    importlib.import_module("resnet_backbones.hosts.timm")
    model = smp.Unet(f"tu-rb_{name}", encoder_weights=None, classes=3)
    return model, model.encoder, lambda: cross_entropy(model(torch.rand(IMAGES)))


def transformers_model(make: str, name: str):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    host = importlib.import_module("resnet_backbones.hosts.transformers")
    small = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    if make == "DetrForObjectDetection":
        backbone = host.config(name)
        config = transformers.DetrConfig(backbone_config=backbone, encoder_layers=1, **small, **heads)
    elif make == "RTDetrForObjectDetection":
        backbone = host.config(name, out_features=["res3", "res4", "res5"])
        with torch.device("meta"):
            channels = host.ResidualBackbone(backbone).channels
        config = transformers.RTDetrConfig(
            backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=channels, decoder_in_channels=[32] * 3,
            hidden_expansion=0.5, **small, **heads,
        )  # fmt: skip
    else:
        backbone = host.config(name, out_features=["res2", "res3", "res4", "res5"])
        with torch.device("meta"):
            channels = host.ResidualBackbone(backbone).channels
        config = transformers.UperNetConfig(
            backbone_config=backbone, hidden_size=32, pool_scales=[1, 2], auxiliary_in_channels=channels[2]
        )
    model = getattr(transformers, make)(config)
    net = next(module for module in model.modules() if isinstance(module, host.ResidualBackbone))
    return model, net, lambda: model(torch.rand(IMAGES)).logits.square().mean()


def detectron2_backbone(make: str, name: str):
    pytest.importorskip("detectron2", reason="detectron2 is not installed; see make test-detectron2")
    modeling = importlib.import_module("detectron2.modeling")
    host = importlib.import_module("resnet_backbones.hosts.detectron2")
    cfg = importlib.import_module("detectron2.config").get_cfg()
    host.add_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "cpu", "BN", 0
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.BACKBONE.NAME = name
    with torch.device("meta"):
        cfg.MODEL.RESNETS.OUT_FEATURES = list(build_backbone(name).output_shape())
    if make == "Detectron2FPN":
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.IN_FEATURES = f"{name}_fpn", ["res2", "res3", "res4", "res5"]
    net = modeling.build_backbone(cfg)
    return net, net, lambda: sum(feature.square().mean() for feature in net(torch.rand(IMAGES)).values())


HOSTS = {
    **dict.fromkeys(("FasterRCNN", "MaskRCNN", "KeypointRCNN", "RetinaNet", "FCOS"), torchvision_detector),
    **dict.fromkeys(("fcn", "deeplabv3", "lraspp"), torchvision_segmentation),
    "timm": timm_classifier,
    "Unet": smp_unet,
    "DetrForObjectDetection": transformers_model,
    "RTDetrForObjectDetection": transformers_model,
    "UperNetForSemanticSegmentation": transformers_model,
    "Detectron2": detectron2_backbone,
    "Detectron2FPN": detectron2_backbone,
}


def excluded(host: str, name: str) -> bool:
    rows = [patterns for hosts, patterns in EXCLUDED.items() if host in hosts.split()]
    return any(fnmatch(name, pattern) for patterns in rows for pattern in patterns)


def pairs(names: list[str], quick: list[str]) -> list:
    """Pairs of host and name; all but those of a name in `quick` are marked slow."""
    return [
        pytest.param(host, name, id=f"{host}-{name}", marks=() if name in quick else pytest.mark.slow)
        for host in HOSTS
        for name in names
        if not excluded(host, name)
    ]


@pytest.mark.parametrize(("host", "name"), pairs(NAMES, FEW))
def test_every_name_builds_in_every_host(host, name):
    with torch.device("meta"):
        model, _, _ = HOSTS[host](host, name)
        backbone = build_backbone(name)
    # Without the norms, which DETR freezes.
    found, expected = (Counter(p.shape for p in net.parameters() if p.ndim > 1) for net in (model, backbone))
    assert found >= expected


@pytest.mark.parametrize(("host", "name"), pairs(MEMBERS, ["resnet18"]))
def test_one_net_per_family_trains_for_a_step_in_every_host(host, name):
    torch.manual_seed(0)
    model, net, loss = HOSTS[host](host, name)
    model.train()
    value = loss()
    value.backward()
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    assert value.isfinite()
    assert first.weight.grad.abs().sum() > 0
