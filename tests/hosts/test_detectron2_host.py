"""Our backbones in detectron2, if it is installed: features, its registry, its configs and its trainer."""

import json
import warnings

import pytest
import torch
import torchvision.ops as torchvision_ops
from conftest import write_coco
from torch import nn

from resnet_backbones import build_backbone, list_backbones
from resnet_backbones.backbones import CIFAR_RESNETS, RESNETS, RandomFrozenWarning
from resnet_backbones.detectors import torchvision
from resnet_backbones.errors import UserError
from resnet_backbones.weights import Checkpoint, from_ours, to_ours

pytest.importorskip("detectron2", reason="detectron2 is not installed; see make test-detectron2")
pytestmark = pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")

from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model  # noqa: E402
from detectron2.modeling import build_backbone as build_theirs  # noqa: E402

from resnet_backbones.hosts import detectron2 as host  # noqa: E402

X101 = {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8}


def with_statistics(net: nn.Module) -> nn.Module:
    """`net` in eval mode, with non-trivial norm statistics and deformable offsets."""
    for module in net.modules():
        if getattr(module, "running_var", None) is not None:
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    for name, parameter in net.named_parameters():
        if "offset" in name:
            parameter.data.normal_(0, 0.1)
    return net.eval()


def largest_difference(ours: dict, theirs: dict) -> float:
    assert list(ours) == list(theirs)
    return max(float((theirs[k] - f).abs().max() / f.abs().max()) for k, f in ours.items())


def config_of(name: str, **keys) -> CfgNode:
    """detectron2's config for one of our backbones with random weights; `keys` as in MODEL__RESNETS__NORM."""
    cfg = get_cfg()
    host.add_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = name, 0
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.DEVICE = "BN", "cpu"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in keys.items():
        *path, last = key.split("__")
        node = cfg
        for part in path:
            node = node[part]
        node[last] = value
    return cfg


CASES = [
    ("resnet18", 18, {}, {}),
    ("resnet34", 34, {}, {}),
    ("resnet50", 50, {}, {"STRIDE_IN_1X1": False}),
    ("resnet50", 50, {"stride_in_1x1": True}, {"STRIDE_IN_1X1": True}),
    ("resnet101", 101, {}, {"STRIDE_IN_1X1": False}),
    ("resnet101", 101, {"stride_in_1x1": True}, {"STRIDE_IN_1X1": True}),
    ("resnext101_32x8d", 101, {}, {"STRIDE_IN_1X1": False, **X101}),
    ("resnext101_32x8d", 101, {"stride_in_1x1": True}, {"STRIDE_IN_1X1": True, **X101}),
    ("resnet50", 50, {"output_stride": 16, "stride_in_1x1": True}, {"RES5_DILATION": 2}),
    ("resnet50", 50, {"output_stride": 16, "dilate_first": True}, {"RES5_DILATION": 2, "STRIDE_IN_1X1": False}),
    ("resnet50", 50, {"deform_on": ["res4", "res5"]},
     {"DEFORM_ON_PER_STAGE": [False, False, True, True], "DEFORM_MODULATED": True, "STRIDE_IN_1X1": False}),
    ("resnet50", 50, {"deform_on": ["res3"], "deform_modulated": False, "stride_in_1x1": True},
     {"DEFORM_ON_PER_STAGE": [False, True, False, False]}),
]  # fmt: skip


@pytest.fixture
def modulated_on_cpu(monkeypatch):
    """detectron2's modulated deformable convolution has no CPU kernel: its layers then run torchvision's."""
    if torch.cuda.is_available():
        return

    def kernel(x, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups):
        return torchvision_ops.deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)

    monkeypatch.setattr("detectron2.layers.deform_conv.modulated_deform_conv", kernel)


@pytest.mark.usefixtures("modulated_on_cpu")
@pytest.mark.parametrize(("name", "depth", "options", "settings"), CASES)
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_features_match_detectron2_after_conversion_both_ways(name, depth, options, settings, norm):
    if norm == "BN" and depth > 50:
        pytest.skip("one norm of the deep ones is enough")
    torch.manual_seed(0)
    ours = with_statistics(build_backbone(name, norm=norm, **options))
    theirs = host.own_resnet(depth, norm, **settings)
    there = from_ours(Checkpoint(ours.state_dict(), {}), "detectron2")
    assert there.skipped == []
    theirs.load_state_dict(there.checkpoint.state)
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        assert largest_difference(ours.double()(image.double()), theirs.double()(image.double())) < 1e-9

    theirs = with_statistics(host.own_resnet(depth, norm, **settings))
    ours.load_state_dict(to_ours(Checkpoint(theirs.state_dict(), {})).checkpoint.state)
    with torch.no_grad():
        assert largest_difference(ours.double()(image.double()), theirs.double()(image.double())) < 1e-9


@pytest.mark.parametrize("norm", ["", "GN"])
@pytest.mark.parametrize(("form", "builder"), [("fpn", "resnet"), ("retinanet_fpn", "retinanet_resnet")])
def test_pyramids_match_detectron2(form, builder, norm):
    torch.manual_seed(0)
    cfg = config_of(f"resnet50_{form}", MODEL__FPN__NORM=norm, MODEL__RESNETS__STRIDE_IN_1X1=False)
    cfg.MODEL.FPN.IN_FEATURES = (
        ["res3", "res4", "res5"] if form == "retinanet_fpn" else ["res2", "res3", "res4", "res5"]
    )
    ours = with_statistics(build_theirs(cfg))
    cfg.MODEL.BACKBONE.NAME = f"build_{builder}_fpn_backbone"
    theirs = with_statistics(build_theirs(cfg))
    there = from_ours(Checkpoint(ours.state_dict(), {}), "detectron2")
    assert there.skipped == []
    theirs.load_state_dict(there.checkpoint.state)
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        assert largest_difference(ours.double()(image.double()), theirs.double()(image.double())) < 1e-9
    assert {k: (s.channels, s.stride) for k, s in ours.output_shape().items()} == {
        k: (s.channels, s.stride) for k, s in theirs.output_shape().items()
    }


def test_a_mask_rcnn_detects_the_same_after_a_round_trip_of_its_backbone():
    torch.manual_seed(0)
    model = torchvision.mask_rcnn(
        build_backbone("resnet18_fpn", fpn_channels=32), 3, min_size=[96], max_size=160, box_score_thresh=0.0
    ).eval()
    images = [torch.randint(256, (3, 90, 120), dtype=torch.uint8)]
    with torch.no_grad():
        expected = model(images)[0]
    there = from_ours(Checkpoint(model.backbone.state_dict(), {}), "detectron2").checkpoint
    cfg = config_of("build_resnet_fpn_backbone", MODEL__RESNETS__DEPTH=18, MODEL__RESNETS__RES2_OUT_CHANNELS=64,
                    MODEL__FPN__OUT_CHANNELS=32, MODEL__FPN__IN_FEATURES=["res2", "res3", "res4", "res5"])  # fmt: skip
    theirs = build_theirs(cfg)
    theirs.load_state_dict(there.state)
    for parameter in model.backbone.parameters():
        parameter.data.zero_()
    model.backbone.load_state_dict(to_ours(Checkpoint(theirs.state_dict(), {})).checkpoint.state)
    with torch.no_grad():
        found = model(images)[0]
    assert len(found["boxes"]) > 0
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_a_whole_detector_has_detectron2s_names_and_shapes():
    ours = torchvision.mask_rcnn(build_backbone("resnet50_fpn"), 80)
    cfg = config_of(
        "build_resnet_fpn_backbone", MODEL__META_ARCHITECTURE="GeneralizedRCNN", MODEL__MASK_ON=True,
        MODEL__FPN__IN_FEATURES=["res2", "res3", "res4", "res5"], MODEL__RESNETS__STRIDE_IN_1X1=False,
        MODEL__RPN__IN_FEATURES=["p2", "p3", "p4", "p5", "p6"], MODEL__ROI_HEADS__NAME="StandardROIHeads",
        MODEL__ANCHOR_GENERATOR__SIZES=[[32], [64], [128], [256], [512]],
        MODEL__ROI_HEADS__IN_FEATURES=["p2", "p3", "p4", "p5"], MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__NUM_FC=2, MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION=7,
        MODEL__ROI_MASK_HEAD__NAME="MaskRCNNConvUpsampleHead", MODEL__ROI_MASK_HEAD__NUM_CONV=4,
        MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION=14,
    )  # fmt: skip
    theirs = build_model(cfg)
    there = from_ours(Checkpoint(ours.state_dict(), {}), "detectron2")
    assert there.skipped == []
    theirs.load_state_dict(there.checkpoint.state)  # strict
    back = to_ours(Checkpoint(theirs.state_dict(), {})).checkpoint.state
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.state_dict().items()}


@pytest.mark.parametrize("name", sorted(RESNETS | CIFAR_RESNETS))
def test_every_residual_name_builds_through_the_registry(name):
    forms = [""] if name.startswith("cifar") else ["", "_fpn", "_c4", "_retinanet_fpn"]
    for form in forms:
        cfg = config_of(f"{name}{form}", MODEL__RESNETS__STRIDE_IN_1X1=False, MODEL__FPN__OUT_CHANNELS=64)
        if name.startswith("cifar"):
            cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4"]
        with torch.device("meta"):
            backbone = build_theirs(cfg)
            features = backbone(torch.zeros(1, 3, 64, 96))
        assert isinstance(backbone, Backbone)
        assert {k: (f.shape[1], 64 // f.shape[2], 96 // f.shape[3]) for k, f in features.items()} == {
            k: (s.channels, min(s.stride, 64), 96 // -(-96 // s.stride)) for k, s in backbone.output_shape().items()
        }
    assert backbone.padding_constraints == {}


def test_every_registered_name_is_in_detectron2s_registry():
    registered = {name for name, _ in BACKBONE_REGISTRY}
    assert set(list_backbones()) <= registered
    assert {"preact_resnet50_c4", "seresnet50_retinanet_fpn", "convnext_tiny_fpn"} <= registered


def test_detectron2s_config_keys_are_applied():
    cfg = config_of(
        "resnet50", MODEL__RESNETS__STRIDE_IN_1X1=True, MODEL__RESNETS__RES5_DILATION=2,
        MODEL__RESNETS__NORM="FrozenBN",
        MODEL__RESNETS__DEFORM_ON_PER_STAGE=[False, False, False, True], MODEL__RESNETS__DEFORM_MODULATED=True,
        MODEL__BACKBONE__FREEZE_AT=2, MODEL__RESNETS__OUT_FEATURES=["res4", "res5"],
        MODEL__WEIGHTS="later.pkl",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", RandomFrozenWarning)  # weights come later
        backbone = build_theirs(cfg)
    net = backbone.net
    assert backbone.output_shape()["res5"].stride == 16
    assert list(backbone.output_shape()) == ["res4", "res5"]
    assert net.layer2[0].conv1.stride == (2, 2)
    assert net.layer4[0].conv2.dilation == (2, 2)
    assert net.layer4[0].conv2.offset.out_channels == 27
    assert type(net.layer3[0].bn1).__name__ == "FrozenBatchNorm2d"
    assert not any(p.requires_grad for p in net.layer1.parameters())
    cfg = config_of("resnet18_fpn", MODEL__FPN__OUT_CHANNELS=48, MODEL__FPN__NORM="BN")
    assert build_theirs(cfg).output_shape()["p2"].channels == 48
    assert isinstance(build_theirs(cfg).net.fpn.inner_blocks[0][1], nn.BatchNorm2d)
    cfg.MODEL.FPN.FUSE_TYPE = "avg"
    with pytest.raises(UserError, match=r"MODEL.FPN.FUSE_TYPE is avg; here it must be sum"):
        build_theirs(cfg)


def test_pixel_mean_and_format_must_match_the_weights(tmp_path):
    from resnet_backbones.classifiers import build_classifier
    from resnet_backbones.weights import save_safetensors

    model = build_classifier("resnet18", num_classes=2)
    metadata = {
        "preprocessing": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
        "architecture": model.backbone.architecture,
    }
    save_safetensors(tmp_path / "r18.safetensors", model.state_dict(), metadata)
    cfg = config_of("resnet18_fpn", MODEL__BACKBONE__WEIGHTS=str(tmp_path / "r18.safetensors"))
    with pytest.raises(UserError, match=r"INPUT.FORMAT is BGR, but .*r18.safetensors was trained on RGB; set"):
        build_theirs(cfg)
    cfg.INPUT.FORMAT = "RGB"
    with pytest.raises(
        UserError, match=r"MODEL.PIXEL_MEAN is \[103.53, 116.28, 123.675\], but .*r18.safetensors was trai"
    ):
        build_theirs(cfg)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [127.5, 102.0, 76.5], [51.0, 51.0, 51.0]
    assert torch.equal(build_theirs(cfg).net.body.conv1.weight, model.backbone.conv1.weight)


def test_c4_heads_use_the_backbones_own_last_stage():
    cfg = config_of(
        "preact_resnet18_c4", MODEL__META_ARCHITECTURE="GeneralizedRCNN", MODEL__ROI_HEADS__NAME="BackboneRes5ROIHeads",
        MODEL__ROI_HEADS__NUM_CLASSES=2, MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION=14,
    )  # fmt: skip
    model = build_model(cfg)
    assert type(model.roi_heads.res5[0]).__name__ == "PreActBasicBlock"
    assert model.roi_heads.box_predictor.cls_score.in_features == 512
    with torch.no_grad():
        output = model.eval()([{"image": torch.rand(3, 64, 96) * 255, "height": 64, "width": 96}])
    assert output[0]["instances"].pred_boxes.tensor.shape[1] == 4


def test_lazy_configs_build_the_backbone():
    lazy = LazyCall(host.build_backbone)(name="preact_resnet18_fpn", norm="BN", fpn_channels=32)
    lazy.fpn_channels = 16
    backbone = instantiate(lazy)
    assert isinstance(backbone, Backbone)
    assert backbone.output_shape()["p3"] == ShapeSpec(channels=16, stride=8)


def test_detectron2s_own_trainer_trains_and_evaluates(tool, tmp_path):
    write_coco(tmp_path / "data", 4)
    yaml = tmp_path / "own.yaml"
    spec = f"{{format: coco, root: {tmp_path}/data/images, annotations: {tmp_path}/data/instances.json}}"
    yaml.write_text(f"datasets: {{ours: {spec}}}\ndata: {{train: [ours], test: [ours]}}\n")
    status, _, err = tool(
        "train_net_detectron2", "--config-file", "configs/detectron2/bccd_faster_rcnn_preact_R18.yaml",
        "--datasets", yaml, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2",
        "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", tmp_path / "out", "DATASETS.TRAIN", "('ours',)",
        "DATASETS.TEST", "('ours',)", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)",
        "INPUT.MIN_SIZE_TEST", "64",
    )  # fmt: skip
    assert status == 0, err
    assert {"AP", "AP50"} <= set(json.loads((tmp_path / "out/results.json").read_text())["bbox"])
    assert (tmp_path / "out/model_final.pth").exists()
