"""Our backbones against torchvision's: weights and features."""

import pytest
import torch
import torchvision
from helpers import assert_equal_features, randomize_statistics
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from resnet_backbones import build_backbone
from resnet_backbones.backbones import RESNETS, RandomFrozenWarning

NAMES = [name for name in RESNETS if hasattr(torchvision.models, name)]
LAYERS = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
pytestmark = pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *(pytest.param(name, "BN", marks=pytest.mark.slow if "10" in name or "152" in name else ()) for name in NAMES),
        ("resnext50_32x4d", "FrozenBN"),
    ],
)
def test_torchvision_state_dict_loads_strictly_and_features_match(name, norm):
    theirs = getattr(torchvision.models, name)(weights=None)
    randomize_statistics(theirs)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    body = IntermediateLayerGetter(theirs, LAYERS).eval()
    ours = build_backbone(name, norm=norm).eval()
    ours.load_state_dict(state, strict=True)
    image = torch.randn(1, 3, 67, 101)
    with torch.no_grad():
        assert_equal_features(ours(image), body(image))


@pytest.mark.parametrize("size", [(64, 96), (67, 101), (33, 1)])
def test_pyramid_matches_torchvision(size):
    theirs = BackboneWithFPN(
        torchvision.models.resnet18(), LAYERS, [64, 128, 256, 512], 32, extra_blocks=LastLevelMaxPool()
    ).eval()
    randomize_statistics(theirs)
    ours = build_backbone("resnet18_fpn", fpn_channels=32).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = dict(zip(["p2", "p3", "p4", "p5", "p6"], theirs(image).values(), strict=True))
        assert_equal_features(ours(image), expected)


def test_p6_p7_pyramid_matches_torchvision():
    theirs = BackboneWithFPN(
        torchvision.models.resnet18(),
        {"layer2": "res3", "layer3": "res4", "layer4": "res5"},
        [128, 256, 512],
        32,
        extra_blocks=LastLevelP6P7(512, 32),
    ).eval()
    ours = build_backbone("resnet18_fpn", fpn_channels=32, out_features=["p3", "p4", "p5", "p6", "p7"]).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.randn(1, 3, 75, 130)
    with torch.no_grad():
        expected = dict(zip(["p3", "p4", "p5", "p6", "p7"], theirs(image).values(), strict=True))
        assert_equal_features(ours(image), expected)


def test_our_weights_load_in_plain_torchvision():
    ours = build_backbone("resnet50", norm="FrozenBN")
    theirs = torchvision.models.resnet50()
    result = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"]
    assert result.unexpected_keys == []


def test_gradients_of_a_frozen_net_match_torchvision():
    theirs = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    with pytest.warns(RandomFrozenWarning):
        ours = build_backbone("resnet18", norm="FrozenBN", freeze_at=2)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    ours, theirs = ours.double(), theirs.double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.double)
    ours(image)["res5"].square().mean().backward()
    IntermediateLayerGetter(theirs, {"layer4": "res5"})(image)["res5"].square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-8, atol=1e-12)
