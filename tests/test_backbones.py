"""The contract of every registered name; a new variant is tested by being registered."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from resnet_backbones import FPN, FrozenBatchNorm2d, ShapeSpec, build_backbone, list_backbones
from resnet_backbones.backbones import BACKBONES, RandomFrozenWarning, register_family
from resnet_backbones.errors import UserError

NAMES = list_backbones()
# Parameters of torchvision's models without the classifier: the counts of the papers, less fc.
PARAMETERS = {
    "resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032, "resnet101": 42_500_160,
    "resnet152": 58_143_808, "resnext50_32x4d": 22_979_904, "resnext101_32x8d": 86_742_336,
    "resnext101_64x4d": 81_406_272, "wide_resnet50_2": 66_834_240, "wide_resnet101_2": 124_837_696,
}  # fmt: skip


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name, **options)


def warns_if(frozen: bool):
    return pytest.warns(RandomFrozenWarning) if frozen else nullcontext()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), (97, 131), (1, 1)])
def test_declared_shapes_are_the_real_ones(name, size):
    backbone = on_meta(name)
    features = backbone(torch.empty(2, 3, *size, device="meta"))
    shapes = backbone.output_shape()
    assert list(features) == list(shapes)
    for feature, shape in shapes.items():
        height, width = (-(-side // shape.stride) for side in size)
        assert features[feature].shape == (2, shape.channels, height, width)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_channels", [1, 4])
def test_other_image_channels(name, in_channels):
    features = on_meta(name, in_channels=in_channels)(torch.empty(1, in_channels, 64, 64, device="meta"))
    assert all(f.shape[0] == 1 for f in features.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["SyncBN", "GN", "none"])
def test_every_norm_builds(name, norm):
    kinds = {"SyncBN": nn.SyncBatchNorm, "GN": nn.GroupNorm, "none": nn.Identity}
    backbone = on_meta(name, norm=norm)
    assert any(isinstance(m, kinds[norm]) for m in backbone.modules())
    assert not any(isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d)) for m in backbone.modules())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("freeze_at", range(6))
def test_freezing_turns_off_gradients_and_statistics_up_to_the_stage(name, freeze_at):
    with warns_if(freeze_at):
        backbone = on_meta(name, freeze_at=freeze_at)
    body = getattr(backbone, "body", backbone)
    stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    for level, children in enumerate(stages, 1):
        modules = [getattr(body, child) for child in children]
        assert all(p.requires_grad == (level > freeze_at) for m in modules for p in m.parameters())
        live = [n for m in modules for n in m.modules() if isinstance(n, nn.BatchNorm2d)]
        assert bool(live) == (level > freeze_at)
    if isinstance(backbone, FPN):
        assert all(p.requires_grad for p in backbone.fpn.parameters())


@pytest.mark.parametrize("freeze_at", range(6))
def test_every_unfrozen_parameter_gets_a_gradient_and_no_frozen_tensor_moves(freeze_at):
    with warns_if(freeze_at):
        backbone = build_backbone("resnet18_fpn", freeze_at=freeze_at, fpn_channels=16).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    moved = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert all("running" in k or "num_batches" in k for k in moved)
    frozen = [f"body.{c}." for c in ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"][: freeze_at + 1]]
    assert bool(moved) == (freeze_at < 5)
    assert not freeze_at or not any(k.startswith(tuple(frozen)) for k in moved)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts_of_the_papers(name, count):
    assert sum(p.numel() for p in on_meta(name).parameters()) == count


@pytest.mark.parametrize(("freeze_at", "trainable"), {0: 60, 1: 57, 2: 45, 3: 30, 4: 15, 5: 0}.items())
def test_trainable_tensors_of_each_freeze_level(freeze_at, trainable):
    with warns_if(freeze_at):
        backbone = on_meta("resnet18", freeze_at=freeze_at)
    # ResNet-18 has 20 convolutions, each with a weight, and a weight and a bias of its norm.
    assert sum(p.requires_grad for p in backbone.parameters()) == trainable


def test_out_features_are_given_in_order_and_later_stages_not_built():
    backbone = build_backbone("resnet18", out_features=["res4", "stem"])
    features = backbone(torch.randn(1, 3, 64, 64))
    assert list(features) == ["stem", "res4"]
    assert backbone.output_shape() == {"stem": ShapeSpec(64, 4), "res4": ShapeSpec(256, 16)}
    assert not hasattr(backbone, "layer4")


def test_state_dict_round_trip_gives_the_same_features(tmp_path):
    one, other = build_backbone("resnet18_fpn").eval(), build_backbone("resnet18_fpn").eval()
    torch.save(one.state_dict(), tmp_path / "r18.pth")
    other.load_state_dict(torch.load(tmp_path / "r18.pth", weights_only=True))
    x = torch.randn(1, 3, 70, 50)
    assert all(torch.equal(f, other(x)[n]) for n, f in one(x).items())


@pytest.mark.parametrize("options", [{"norm": "FrozenBN"}, {"freeze_at": 2}])
def test_frozen_random_weights_warn(options):
    with pytest.warns(RandomFrozenWarning, match="resnet18.*random weights: what is frozen never learns"):
        on_meta("resnet18", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, "Unknown backbone 'resnet51'. Did you mean resnet50"),
        ({"norm": "batch"}, "Unknown norm 'batch'"),
        ({"freeze_at": 6}, "freeze_at is 6; it must be 0"),
        ({"out_features": ["res6"]}, "Unknown feature 'res6'. Did you mean res"),
        ({"out_features": []}, "out_features is empty"),
        ({"name": "resnet18_fpn", "out_features": ["p8"]}, "Unknown feature 'p8'"),
    ],
)
def test_bad_arguments_say_what_exists(options, message):
    with pytest.raises(UserError, match=message):
        on_meta(**{"name": "resnet18"} | options)


def test_list_filters_by_pattern():
    assert list_backbones("resnext50*") == ["resnext50_32x4d", "resnext50_32x4d_fpn"]
    assert len(NAMES) == 20


def test_an_own_backbone_registers_with_its_fpn():
    class Strided(nn.Module):
        def __init__(self, norm: str, freeze_at: int) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 8, 1, stride=2**k) for k in (2, 3, 4, 5))

        def forward(self, images):
            return {f"res{k}": conv(images) for k, conv in enumerate(self.convs, 2)}

        def output_shape(self):
            return {f"res{k}": ShapeSpec(8, 2**k) for k in (2, 3, 4, 5)}

    register_family("strided", Strided)
    try:
        assert build_backbone("strided_fpn")(torch.zeros(1, 3, 64, 64))["p5"].shape == (1, 256, 2, 2)
    finally:
        for name in ("strided", "strided_fpn"):
            BACKBONES._obj_map.pop(name)
