"""Files of whole detectors: torchvision's, including those from before 0.13, and ours to fine-tune on other classes."""

import re

import pytest
import torch
from helpers import assert_close, randomize_statistics
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from resnet_backbones import build_backbone
from resnet_backbones.config.detection import Config
from resnet_backbones.detectors import build_detector
from resnet_backbones.errors import UserError
from resnet_backbones.preprocessing import IMAGENET_MEAN

# What torchvision's modules rename when they load a file from before 0.13, as all COCO_V1 weights are.
BEFORE_0_13 = [
    (r"(fpn\.\w+_blocks\.\d)\.0\.(weight|bias)", r"\1.\2"),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}."),
    (r"((?:classification|regression)_head\.conv)\.(\d)\.0\.", lambda match: f"{match[1]}.{2 * int(match[2])}."),
]
DENSE = ["p3", "p4", "p5", "p6", "p7"]
SIZES = {"min_size": 64, "max_size": 96}
FEW = {"box_detections_per_img": 5}


def theirs(name: str) -> nn.Module:
    """torchvision's detector for three classes on a ResNet-18."""
    torch.manual_seed(0)
    if name in ("faster_rcnn", "mask_rcnn"):
        make = {"faster_rcnn": detection.FasterRCNN, "mask_rcnn": detection.MaskRCNN}[name]
        options = FEW
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    else:
        make, options = {"retinanet": detection.RetinaNet, "fcos": detection.FCOS}[name], {"detections_per_img": 5}
        levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, **levels)
    model = make(backbone, 4, **SIZES, **options)
    randomize_statistics(model)
    for parameter, value in model.named_parameters():
        if re.search(r"cls_score\.weight|cls_logits\.(weight|bias)|bbox_ctrness\.bias", parameter):
            nn.init.normal_(value, std=0.5)
        if parameter.endswith("classification_head.cls_logits.bias"):
            value.data.view(-1, 4)[:, 0] = -100  # the background, which a trained net never detects
    return model.eval()


def before_0_13(state: dict) -> dict:
    old = {}
    for name, tensor in state.items():
        for pattern, replacement in BEFORE_0_13:
            name = re.sub(pattern, replacement, name)
        old[name] = tensor
    assert old.keys() != state.keys()
    return old


def config_of(name: str, weights: str) -> Config:
    config = OmegaConf.structured(Config)
    config.backbone.name, config.detector.name, config.weights = "resnet18_fpn", name, weights
    config.detector.min_size, config.detector.max_size, config.detector.box_detections_per_img = [64], 96, 5
    if name in ("retinanet", "fcos"):
        config.backbone.out_features = DENSE
        octaves = (1, 2 ** (1 / 3), 2 ** (2 / 3))
        config.detector.anchor_sizes = [[int(32 * 2**k * o) for o in octaves] for k in range(5)]
        config.detector.box_score_thresh = 0.05 if name == "retinanet" else 0.2
    return config


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
def test_torchvision_detector_weights_give_the_same_detections(tmp_path, name):
    reference, images = theirs(name), [torch.rand(3, 64, 80)]
    state = reference.state_dict()
    torch.save(state if name == "fcos" else before_0_13(state), tmp_path / "theirs.pth")
    with torch.no_grad():
        ours = build_detector(config_of(name, str(tmp_path / "theirs.pth")), 3).eval()(images)[0]
        expected = reference(images)[0]
    assert len(ours["boxes"]) > 0
    assert torch.equal(ours["labels"], expected["labels"])
    for key in ours.keys() - {"labels"}:
        assert_close(ours[key], expected[key])


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_fpn_loads_from_an_old_detector_file(tmp_path, name):
    reference, images = theirs(name), torch.rand(1, 3, 64, 96)
    torch.save({"model": before_0_13(reference.state_dict())}, tmp_path / "theirs.pth")
    levels = {"out_features": DENSE} if name == "retinanet" else {}
    with torch.no_grad():
        ours = build_backbone("resnet18_fpn", weights=str(tmp_path / "theirs.pth"), **levels).eval()(images)
        for level, expected in zip(ours.values(), reference.backbone(images).values(), strict=True):
            assert_close(level, expected)


@pytest.mark.parametrize("source", ["torchvision://fasterrcnn_resnet50_fpn/COCO_V1", "{file}"])
def test_coco_v1_weights_use_norms_without_eps(tmp_path, monkeypatch, source):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache, published = tmp_path / "hub/checkpoints", detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    cache.mkdir(parents=True)
    reference = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 1e-5, 1e-2)
            nn.init.uniform_(module.weight, 0, 0.05)
    file = cache / published.url.rpartition("/")[2]
    torch.save(before_0_13(reference.state_dict()), file)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30  # torchvision uses 0 for these weights, which nn.BatchNorm2d refuses in some versions
    backbone, images = build_backbone("resnet50_fpn", weights=source.format(file=file)).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, expected in zip(backbone(images).values(), reference.backbone(images).values(), strict=True):
            assert_close(ours, expected)
    if source != "{file}":
        assert backbone.preprocessing.mean == IMAGENET_MEAN


@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet"])
def test_other_classes_get_new_predictors_only_in_training(tmp_path, caplog, name):
    trained = build_detector(config_of(name, None), 3)
    content = {
        "model": trained.state_dict(),
        "metadata": {"architecture": trained.backbone.architecture, "classes": ["a", "b", "c"]},
    }
    torch.save(content, tmp_path / "last.pt")
    config = config_of(name, str(tmp_path / "last.pt"))
    with caplog.at_level("INFO", "resnet_backbones"):
        model = build_detector(config, 5, new_predictors=True)
    old, new = trained.state_dict(), model.state_dict()
    other = {key for key in new if new[key].shape != old[key].shape}
    predictors = ["box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits"]
    names = (
        [f"roi_heads.{part}" for part in predictors] if name == "mask_rcnn" else ["head.classification_head.cls_logits"]
    )
    assert other == {f"{part}.{kind}" for part in names for kind in ("weight", "bias")}
    assert all(torch.equal(new[key], old[key]) for key in new.keys() - other)
    assert f"{names[0]}.weight" in caplog.text
    assert "keep their random weights" in caplog.text
    for classes in (2, 5):
        with pytest.raises(UserError, match=r"last.pt does not fit the model. \d tensors of another shape: .*cls_"):
            build_detector(config, classes)
    same = build_detector(config, 3, new_predictors=True)
    assert all(torch.equal(tensor, old[key]) for key, tensor in same.state_dict().items())


def test_detector_with_another_stride_placement_is_refused(tmp_path):
    trained = build_backbone("resnet50", stride_in_1x1=True)
    torch.save({"model": {}, "metadata": {"architecture": trained.architecture}, "x": torch.ones(1)}, tmp_path / "a.pt")
    config = config_of("faster_rcnn", str(tmp_path / "a.pt"))
    config.backbone.name = "resnet50_fpn"
    with pytest.raises(UserError, match="holds a resnet50 with stride_in_1x1=True, but the backbone is built with"):
        build_detector(config, 3)
