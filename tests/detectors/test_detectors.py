"""Detectors with torchvision's heads against torchvision's own, and their settings."""

import copy
import math

import pytest
import torch
import torchvision
from conftest import REPRESENTATIVES, TINY
from torch import nn
from torchvision.models.detection import FCOS, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from resnet_backbones import build_backbone
from resnet_backbones.config import load_config
from resnet_backbones.detectors import build_detector, settings
from resnet_backbones.detectors.torchvision import faster_rcnn, fcos, mask_rcnn, retinanet
from resnet_backbones.errors import UserError

SETTINGS = {"min_size": [96], "max_size": 160, "box_detections_per_img": 20, "box_score_thresh": 0.0}


def torchvision_mask_rcnn() -> MaskRCNN:
    """The same network assembled by torchvision alone."""
    layers = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
    backbone = BackboneWithFPN(torchvision.models.resnet18(), layers, [64, 128, 256, 512], 64)
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    model = MaskRCNN(backbone, 4, rpn_anchor_generator=anchors, **SETTINGS)
    model.roi_heads.mask_head = MaskRCNNHeads(64, [32, 32], 1)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(32, 32, 4)
    return model


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    theirs = torchvision_mask_rcnn()
    backbone = build_backbone("resnet18_fpn", fpn_channels=64)
    ours = mask_rcnn(backbone, num_classes=3, mask_head_width=32, mask_head_depth=2, **SETTINGS)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def test_detections_equal_torchvisions(pair):
    ours, theirs = (model.eval() for model in pair)
    images = [torch.rand(3, 90, 140), torch.rand(3, 201, 77)]
    with torch.no_grad():
        for mine, reference in zip(ours(images), theirs(images), strict=True):
            assert len(reference["boxes"]) == 20
            for key in ("boxes", "labels", "scores", "masks"):
                torch.testing.assert_close(mine[key], reference[key], rtol=1e-5, atol=1e-5)


def test_losses_equal_torchvisions(pair):
    # In the same memory format: another one rounds differently, so that other proposals are sampled.
    ours, theirs = (model.train().to(memory_format=torch.contiguous_format) for model in pair)
    images = [torch.rand(3, 90, 140), torch.rand(3, 201, 77)]
    targets = []
    for image in images:
        masks = torch.zeros(2, *image.shape[-2:], dtype=torch.uint8)
        masks[0, 10:50, 5:40], masks[1, 30:70, 20:60] = 1, 1
        boxes = torch.tensor([[5.0, 10, 40, 50], [20, 30, 60, 70]])
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks})
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        losses.append(model(images, targets))
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[1].items():
        torch.testing.assert_close(losses[0][name], value, rtol=1e-5, atol=1e-6)


def test_uint8_and_float_images_give_the_same_boxes(pair):
    model = pair[0].eval()
    image = torch.randint(0, 256, (3, 90, 140), dtype=torch.uint8)
    with torch.no_grad():
        of_bytes, of_floats = model([image])[0], model([image / 255])[0]
    torch.testing.assert_close(of_bytes["boxes"], of_floats["boxes"])


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (5, 3)])
def test_tiny_and_narrow_images_train_and_detect(pair, size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    ours = pair[0]
    box = torch.tensor([[0.0, 0.0, size[1], size[0]]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, *size, dtype=torch.uint8)}
    assert all(torch.isfinite(loss) for loss in ours.train()([image], [target]).values())
    with torch.no_grad():
        assert ours.eval()([image])[0]["masks"].shape[-2:] == size


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_detector_name_selects_the_heads(name):
    with torch.device("meta"):
        model = build_detector(load_config("quickstart_mask_rcnn", [f"detector.name={name}"]), num_classes=3)
    assert model.roi_heads.has_mask() == (name == "mask_rcnn")


TINY_HEADS = {
    "min_size": [64],
    "max_size": 96,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 50,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 5,
    "box_score_thresh": 0.0,
}
ONE_MAP = {"anchor_sizes": [[8, 16, 32]]}


def train_and_detect(model: nn.Module) -> tuple[dict, list[dict]]:
    """Two training steps on two images, with gradients for all trainable parameters; then detections in one image."""
    images = [torch.rand(3, 64, 80), torch.rand(3, 90, 64)]
    targets = []
    for image in images:
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
        masks[0, 10:40, 5:35], masks[1, 30:60, 20:50] = 1, 1
        boxes = torch.tensor([[5.0, 10, 35, 40], [20, 30, 50, 60]])
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(2):
        losses = model.train()(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        return losses, model.eval()([images[0]])


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_every_family_trains_and_detects(name):
    backbone = build_backbone(f"{name}_fpn", fpn_channels=32)
    _, detections = train_and_detect(faster_rcnn(backbone, 3, box_head_width=32, **TINY_HEADS))
    assert detections[0]["boxes"].shape == (5, 4)
    assert set(detections[0]["labels"].tolist()) <= {1, 2, 3}


C4 = ["preact_resnet18", "regnet_y_400mf"]
SLOW_C4 = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "seresnet18", "convnext_tiny")]


@pytest.mark.parametrize("name", C4 + SLOW_C4)
def test_c4_trains_and_detects_with_the_last_stage_as_box_head(name):
    whole = build_backbone(name, out_features=["res4", "res5"])
    channels, stage_parameters = whole.output_shape()["res5"].channels, sum(p.numel() for p in whole.parameters())
    model = mask_rcnn(whole, 3, box_head="res5", box_pool_size=14, mask_head_width=16, **TINY_HEADS, **ONE_MAP)
    assert list(model.backbone.output_shape()) == ["res4"]
    assert model.roi_heads.box_predictor.cls_score.in_features == channels
    moved = sum(p.numel() for p in model.roi_heads.box_head.parameters())
    assert moved > 0
    assert moved + sum(p.numel() for p in model.backbone.parameters()) == stage_parameters
    losses, detections = train_and_detect(model)
    assert "loss_mask" in losses
    assert detections[0]["masks"].shape == (5, 1, 64, 80)


def test_c4_box_features_are_torchvisions_layer4():
    theirs = torchvision.models.resnet50().eval()
    backbone = build_backbone("resnet50", out_features=["res4", "res5"])
    backbone.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    model = faster_rcnn(backbone, 3, box_head="res5", box_pool_size=14, **TINY_HEADS, **ONE_MAP).eval()
    pooled = torch.randn(2, 1024, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(model.roi_heads.box_head(pooled), theirs.layer4(pooled).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"out_features": ["res5"], "output_stride": 16}),
        ("preact_resnet18", {"out_features": ["res5"], "output_stride": 16, "deform_on": ["res5"]}),
        ("vgg11", {"out_features": ["res4"]}),
    ],
)
def test_heads_on_a_single_map_train_and_detect(name, options):
    backbone = build_backbone(name, **options)
    model = mask_rcnn(backbone, 3, box_head_width=32, mask_head_width=16, mask_head_depth=1, **TINY_HEADS, **ONE_MAP)
    _, detections = train_and_detect(model)
    assert detections[0]["boxes"].shape == (5, 4)
    assert detections[0]["masks"].shape == (5, 1, 64, 80)


def one_stage_pair(kind: str) -> tuple[nn.Module, nn.Module]:
    """Ours with three classes, and torchvision's own, whose labels start at 0, with the same weights."""
    levels = ["p3", "p4", "p5", "p6", "p7"]
    ours = build_backbone("resnet18_fpn", fpn_channels=64, out_features=levels)
    make, theirs = (retinanet, RetinaNet) if kind == "retinanet" else (fcos, FCOS)
    model = make(ours, 3, min_size=[96], max_size=160, box_score_thresh=0.0, box_nms_thresh=0.6)
    options = {"min_size": 96, "max_size": 160, "score_thresh": 0.0, "nms_thresh": 0.6, "detections_per_img": 100}
    if kind == "retinanet":
        sizes = settings.RetinaNet().anchor_sizes
        options["anchor_generator"] = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    reference = theirs(copy.deepcopy(ours), 3, **options)
    reference.load_state_dict(model.state_dict())
    return model, reference


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_one_stage_detectors_match_torchvision_with_labels_from_one(kind):
    ours, theirs = one_stage_pair(kind)
    images = [torch.rand(3, 90, 140), torch.rand(3, 120, 77)]
    boxes = torch.tensor([[5.0, 10, 60, 70], [20, 30, 70, 80]])
    losses = ours(images, [{"boxes": boxes, "labels": torch.tensor([1, 3])}] * 2)
    expected = theirs(images, [{"boxes": boxes, "labels": torch.tensor([0, 2])}] * 2)
    assert len(losses) == len(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[f"loss_{name}"], loss)
    with torch.no_grad():
        for mine, reference in zip(ours.eval()(images), theirs.eval()(images), strict=True):
            assert len(reference["boxes"]) > 0
            assert torch.equal(mine["labels"], reference["labels"] + 1)
            torch.testing.assert_close(mine["boxes"], reference["boxes"])
            torch.testing.assert_close(mine["scores"], reference["scores"])


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_one_stage_detectors_accept_uint8_and_images_without_objects(kind):
    model, _ = one_stage_pair(kind)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert all(torch.isfinite(loss) for loss in model.train()([image], [empty]).values())


@pytest.mark.parametrize("make", [retinanet, fcos])
def test_one_stage_detectors_refuse_a_pyramid_from_p2(make):
    with pytest.raises(UserError, match="One-stage detectors need p3 … p7 and the backbone gives p2"):
        make(build_backbone("resnet18_fpn", fpn_channels=32), 3)


def test_losses_of_an_image_without_objects_are_finite(pair):
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 90, 140, dtype=torch.uint8),
    }
    losses = pair[0].train()([torch.rand(3, 90, 140)], [target])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_initial_mask_loss_of_one_class_is_log_2():
    torch.manual_seed(0)
    model = mask_rcnn(build_backbone("resnet18_fpn"), 1, min_size=[64], max_size=96)
    target = {"boxes": torch.tensor([[8.0, 8, 56, 50]]), "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 64)}
    loss = model([torch.rand(3, 64, 64)], [target])["loss_mask"]
    assert loss.item() == pytest.approx(math.log(2), abs=0.1)  # that of a constant 0.5


def test_settings_reach_torchvisions_modules():
    model = faster_rcnn(
        build_backbone("resnet18_fpn", fpn_channels=32),
        num_classes=2,
        anchor_sizes=[[8, 12], [16, 24], [32, 48], [64, 96], [128, 192]],
        aspect_ratios=[1.0],
        rpn_pre_nms_top_n_train=11,
        rpn_post_nms_top_n_test=12,
        rpn_batch_size_per_image=13,
        box_batch_size_per_image=14,
        box_score_thresh=0.15,
        box_nms_thresh=0.16,
        box_detections_per_img=17,
        box_head_width=18,
    )
    assert model.rpn.head.cls_logits.out_channels == 2
    assert model.train().rpn.pre_nms_top_n() == 11
    assert model.eval().rpn.post_nms_top_n() == 12
    assert model.rpn.fg_bg_sampler.batch_size_per_image == 13
    heads = model.roi_heads
    assert heads.fg_bg_sampler.batch_size_per_image == 14
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.15, 0.16, 17)
    assert heads.box_head.fc6.out_features == 18


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("detector.library=mmdet", "Unknown detector.library 'mmdet'"),
        ("detector.name=faster_rccn", "Unknown detector.name 'faster_rccn'. Did you mean faster_rcnn"),
        ("backbone.name=resnet18", "need a pyramid: use a NAME_fpn backbone"),
        (
            "detector.anchor_sizes=[[8]]",
            "anchor_sizes has 1 levels, but the backbone gives 5: p2, p3, p4, p5, p6",
        ),
        ("detector.box_head=res6", "Unknown detector.box_head 'res6'. Did you mean res5"),
        (
            "detector.box_head=res5",
            r"box_head=res5 needs a backbone with out_features=\[res4, res5\], this one gives p2",
        ),
        ("backbone.shortcut=E", "Unknown shortcut 'E'"),
        ("backbone.stride_in_1x1=true", "Unknown option of resnet18_fpn 'stride_in_1x1'"),
        ("detector.anchor_sizes=[[8],[8],[8],[8],[8,9]]", "equally many sizes on every level"),
        ("backbone.weights=x.pth", "weights file x.pth does not exist"),
        ("weights=y.pt", "weights file y.pt does not exist"),
    ],
)
def test_invalid_detectors_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        build_detector(load_config("quickstart_mask_rcnn", [*TINY, override]), num_classes=2)


def test_detector_weights_override_backbone_weights(tmp_path):
    source = build_detector(load_config("quickstart_mask_rcnn", TINY), num_classes=2)
    torch.save({"model": source.state_dict()}, tmp_path / "last.pt")
    overrides = [
        *TINY,
        f"weights={tmp_path}/last.pt",
        "backbone.weights=nowhere.pth",
        "backbone.norm=FrozenBN",
    ]
    model = build_detector(load_config("quickstart_mask_rcnn", overrides), num_classes=2)
    assert torch.equal(model.roi_heads.box_head.fc6.weight, source.roi_heads.box_head.fc6.weight)
    with pytest.raises(UserError, match="last.pt does not fit.*box_predictor"):
        build_detector(load_config("quickstart_mask_rcnn", overrides), num_classes=5)
