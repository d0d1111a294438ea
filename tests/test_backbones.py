"""The contract of every registered backbone; registering a new variant is enough to test it."""

import copy
import fnmatch
from contextlib import nullcontext

import pytest
import torch
from conftest import REPRESENTATIVES
from helpers import assert_equal_features
from torch import nn
from torchvision.ops import StochasticDepth

from resnet_backbones import FrozenBatchNorm2d, ShapeSpec, backbones, build_backbone, list_backbones
from resnet_backbones.backbones import RandomFrozenWarning, register_family
from resnet_backbones.errors import UserError
from resnet_backbones.models.fpn import FPN
from resnet_backbones.models.resnet import ResNet

# Deep nets: slow to build even on the meta device, and much like a smaller one of the family.
LARGE = [
    "*1202", "*1001", "*152*", "*200", "senet154", "*101*", "cifar_*56", "cifar_*110", "cifar_*164", "densenet1[67]*",
    "densenet201", "efficientnet_b[1-7]", "efficientnet_v2_*", "convnext_[sbl]*", "swin*_[sb]", "regnet_?_[138]*",
    "*_bn",
]  # fmt: skip


def each(names: list[str]) -> list:
    """`names` as parameters; those that match a pattern of `LARGE` are left to `make test-slow`."""
    is_slow = {name: any(fnmatch.fnmatch(name.removesuffix("_fpn"), pattern) for pattern in LARGE) for name in names}
    return [pytest.param(name, marks=pytest.mark.slow) if is_slow[name] else name for name in names]


BODIES = [name for name in list_backbones() if not name.endswith("_fpn")]
PYRAMIDS = [name for name in list_backbones() if name.endswith("_fpn")]
FAMILIES = [*REPRESENTATIVES, *(pytest.param(n, marks=pytest.mark.slow) for n in BODIES if n not in REPRESENTATIVES)]
COMPILED = ["resnet18", "preact_resnet18", "seresnet18", "zfnet", "regnet_y_400mf"]  # seconds each
QUICK_FAMILIES = [pytest.param(n, marks=() if n in COMPILED else pytest.mark.slow) for n in BODIES]


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name, **options)


def images(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.empty(2, channels, height, width, device="meta")


def warns_if(frozen: bool):
    return pytest.warns(RandomFrozenWarning) if frozen else nullcontext()


@pytest.mark.parametrize("name", each(BODIES))
def test_output_shape_matches_the_features(name):
    backbone = on_meta(name)
    shapes = backbone.output_shape()
    for size in [(64, 96), (97, 131)]:
        features = backbone(images(*size))
        assert list(features) == list(shapes)
        for feature, shape in shapes.items():
            assert features[feature].shape[:2] == (2, shape.channels)
            for real, side in zip(features[feature].shape[2:], size, strict=True):
                rounded_up = -(-side // shape.stride)
                # Residual nets round up; the others round in their own ways, and AlexNet does not pad.
                assert real == rounded_up or (not isinstance(backbone, ResNet) and abs(real - rounded_up) <= 2)


@pytest.mark.parametrize("name", each(PYRAMIDS))
def test_pyramid_levels_have_the_size_of_the_body_features(name):
    pyramid = on_meta(name)
    body, levels = pyramid.body(images(97, 131)), pyramid(images(97, 131))
    assert list(levels) == list(pyramid.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    for k in range(2, 6):
        assert levels[f"p{k}"].shape == (2, 256, *body[f"res{k}"].shape[2:])
        assert pyramid.output_shape()[f"p{k}"] == ShapeSpec(256, 2**k)


@pytest.mark.parametrize("name", each(BODIES))
@pytest.mark.parametrize("in_channels", [1, 4])
def test_other_in_channels_change_only_the_first_convolution(name, in_channels):
    rgb, other = on_meta(name), on_meta(name, in_channels=in_channels)
    assert list(other(images(64, 64, in_channels))) == list(rgb.output_shape())
    before, after = ({k: v.shape for k, v in net.state_dict().items()} for net in (rgb, other))
    first = next(k for k, shape in before.items() if len(shape) == 4)
    assert before[first][1] == 3
    assert after == before | {first: torch.Size([before[first][0], in_channels, *before[first][2:]])}


@pytest.mark.parametrize("name", each(BODIES))
def test_each_norm_is_applied_or_refused(name):
    plain = on_meta(name)
    has_bn = any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    kinds = {"SyncBN": nn.SyncBatchNorm, "FrozenBN": FrozenBatchNorm2d}
    if isinstance(plain, ResNet):
        kinds |= {"GN": nn.GroupNorm, "none": nn.Identity}
    else:
        with pytest.raises(UserError, match="come with their own norms"):
            on_meta(name, norm="GN")
    for norm, kind in kinds.items():
        if norm == "GN" and name.startswith("cifar_") and "resnext" not in name:  # their stem has 16 channels
            with pytest.raises(UserError, match="GN needs channels in multiples of its 32 groups"):
                on_meta(name, norm=norm)
            continue
        with warns_if(norm == "FrozenBN" and has_bn):
            backbone = on_meta(name, norm=norm)
        assert not any(type(m) is nn.BatchNorm2d for m in backbone.modules())
        assert any(isinstance(m, kind) for m in backbone.modules()) or not has_bn
        assert list(backbone(images(64, 64))) == list(plain.output_shape())


@pytest.mark.parametrize("name", each(BODIES))
def test_only_stages_after_freeze_at_have_gradients_and_live_norms(name):
    for freeze_at in (0, 2, 5):
        with warns_if(freeze_at):
            backbone = on_meta(name, freeze_at=freeze_at).train()
        frozen = tuple(f"{n}." for names in list(backbone.stages.values())[:freeze_at] for n in names)
        features = backbone(images(64, 64))
        if freeze_at < 5:
            sum(f.mean() for f in features.values()).backward()
        for n, parameter in backbone.named_parameters():
            assert parameter.requires_grad == (not n.startswith(frozen)), n
            assert parameter.requires_grad == (parameter.grad is not None), n
        live = [n for n, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
        assert not any(n.startswith(frozen) or n in {f.rstrip(".") for f in frozen} for n in live)
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_training_step_moves_all_but_the_frozen_stages(name):
    with warns_if(True):
        backbone = build_backbone(f"{name}_fpn", freeze_at=3, fpn_channels=16).train()
    for module in backbone.modules():
        if isinstance(module, StochasticDepth):  # a dropped block would not move
            module.eval()
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.AdamW(backbone.parameters(), 0.1)
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    moved = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    frozen = tuple(f"body.{n}." for names in list(backbone.body.stages.values())[:3] for n in names)
    assert moved == {k for k in before if not k.startswith(frozen) and not k.endswith("position_index")}  # of Swin


@pytest.mark.parametrize(("freeze_at", "trainable"), {0: 60, 1: 57, 2: 45, 3: 30, 4: 15, 5: 0}.items())
def test_number_of_trainable_tensors_per_freeze_at(freeze_at, trainable):
    with warns_if(freeze_at):
        backbone = on_meta("resnet18", freeze_at=freeze_at)
    # ResNet-18 has 20 convolutions, each with a weight, and a weight and a bias of its norm.
    assert sum(p.requires_grad for p in backbone.parameters()) == trainable


def with_statistics_of(backbone: nn.Module, x: torch.Tensor) -> nn.Module:
    """`backbone` in eval mode with the BN statistics of `x`: with the initial ones a 1000-layer net would overflow."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        backbone.train()(x)
    return backbone.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_state_dict_round_trip_gives_the_same_features(name, tmp_path):
    x = torch.randn(1, 3, 70, 66)
    one, other = with_statistics_of(build_backbone(name), x), build_backbone(name).eval()
    torch.save(one.state_dict(), tmp_path / "weights.pth")
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    with torch.no_grad():
        assert all(torch.equal(f, other(x)[n]) for n, f in one(x).items())


@pytest.mark.parametrize("name", QUICK_FAMILIES)
def test_exported_program_gives_the_same_features(name):
    x = torch.randn(1, 3, 64, 96, dtype=torch.double)  # statistics of one image magnify rounding
    pyramid = with_statistics_of(build_backbone(_with_pyramid(name)).double(), x)
    program = torch.export.export(pyramid, (x,), strict=False)
    with torch.no_grad():
        expected, got = pyramid(x), program.module()(x)
    assert_equal_features(got, expected)


@pytest.mark.parametrize("name", QUICK_FAMILIES)
def test_compiles_as_one_graph_with_the_same_features(name):
    x = torch.randn(1, 3, 64, 96, dtype=torch.double)  # statistics of one image magnify rounding
    pyramid = with_statistics_of(build_backbone(_with_pyramid(name)).double(), x)
    torch.compiler.reset()
    compiled = torch.compile(pyramid, backend="eager", fullgraph=True)  # tracing is ours, code generation is not
    with torch.no_grad():
        assert_equal_features(compiled(x), pyramid(x))


def _with_pyramid(name: str) -> str:
    return f"{name}_fpn" if f"{name}_fpn" in PYRAMIDS else name


def test_out_features_come_in_order_and_later_stages_are_not_built():
    backbone = build_backbone("resnet18", out_features=["res4", "stem"])
    features = backbone(torch.randn(1, 3, 64, 64))
    assert list(features) == ["stem", "res4"]
    assert backbone.output_shape() == {"stem": ShapeSpec(64, 4), "res4": ShapeSpec(256, 16)}
    assert not hasattr(backbone, "layer4")


@pytest.mark.parametrize("options", [{"norm": "FrozenBN"}, {"freeze_at": 2}])
def test_frozen_random_weights_warn(options):
    with pytest.warns(RandomFrozenWarning, match="resnet18.*random weights: what is frozen never learns"):
        on_meta("resnet18", **options)


def test_net_with_nothing_to_freeze_does_not_warn():
    on_meta("vgg16_fpn", norm="FrozenBN")  # it has no norms
    with pytest.warns(RandomFrozenWarning):
        on_meta("vgg16_fpn", freeze_at=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, "Unknown backbone 'resnet51'. Did you mean resnet50"),
        ({"norm": "batch"}, "Unknown norm 'batch'"),
        ({"freeze_at": 6}, "freeze_at is 6; it must be 0"),
        ({"out_features": ["res6"]}, "Unknown feature 'res6'. Did you mean res"),
        ({"out_features": []}, "out_features is empty"),
        ({"name": "resnet18_fpn", "out_features": ["p8"]}, "Unknown feature 'p8'"),
        ({"stride_in_1x1": True}, "Unknown option of resnet18 'stride_in_1x1'. Available: .*shortcut"),
        (
            {"name": "vgg16", "shortcut": "A"},
            r"option of vgg16 'shortcut'\. Available: freeze_at, in_channels, norm, out_features, weights\.$",
        ),
        (
            {"name": "resnet50", "dilation": 2},
            r"Available: checkpoint_stages, deform_modulated, deform_on, dilate_first, drop_path, freeze_at, "
            r"in_channels, norm, out_features, output_stride, shortcut, stride_in_1x1, weights, zero_init_residual\.$",
        ),
        ({"name": "resnet50_fpn", "fpn_chanels": 8}, "Unknown option of resnet50_fpn 'fpn_chanels'. Did you mean fpn_"),
    ],
)
def test_invalid_arguments_name_the_valid_ones(options, message):
    with pytest.raises(UserError, match=message):
        on_meta(**{"name": "resnet18"} | options)


def test_list_filters_by_pattern():
    assert list_backbones("resnext50*") == ["resnext50_32x4d", "resnext50_32x4d_fpn"]
    assert list_backbones("preact*0") == ["preact_resnet200", "preact_resnet50"]


def test_custom_backbone_registers_with_its_fpn(monkeypatch):
    monkeypatch.setattr(backbones, "BACKBONES", copy.deepcopy(backbones.BACKBONES))  # restored after the test

    class Strided(nn.Module):
        def __init__(self, norm: str) -> None:
            super().__init__()
            self.stages = {}
            self.convs = nn.ModuleList(nn.Conv2d(3, 8, 1, stride=2**k) for k in (2, 3, 4, 5))

        def forward(self, images):
            return {f"res{k}": conv(images) for k, conv in enumerate(self.convs, 2)}

        def output_shape(self):
            return {f"res{k}": ShapeSpec(8, 2**k) for k in (2, 3, 4, 5)}

    register_family("strided", Strided)
    assert build_backbone("strided_fpn")(torch.zeros(1, 3, 64, 64))["p5"].shape == (1, 256, 2, 2)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            ("res3", "res4", "res5"),
            "need res2 of the backbone, which gives res3, res4, res5; choose out_features from p3",
        ),
        (("res4",), "which gives res4; use its name without _fpn"),
    ],
)
def test_fpn_names_the_features_its_body_lacks(features, message):
    class Body(nn.Module):
        def output_shape(self):
            return {feature: ShapeSpec(8, 2 ** int(feature[3:])) for feature in features}

    with pytest.raises(UserError, match=message):
        FPN(Body())
