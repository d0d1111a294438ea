"""Pre-activation nets against the paper's equations and timm's."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal_features, randomize_statistics
from torch import nn

from resnet_backbones import build_backbone
from resnet_backbones.weights.renaming import from_timm_preact


def paper_features(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """arXiv 1603.05027: the raw sum is passed from unit to unit, across stages too, and tapped after BN-ReLU."""

    def activate(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return norm(x).relu()

    x, features = F.max_pool2d(net.conv1(x), 3, 2, 1), {}
    first = net.bn1
    for k in range(4):
        layer = getattr(net, f"layer{k + 1}")
        for unit in [m for m in layer if hasattr(m, "conv1")]:
            a = activate(first if unit.bn1 is None else unit.bn1, x)
            if unit.downsample is not None:
                x = unit.downsample(a)  # a projection of the pre-activated x
            elif k == 0 and unit.bn1 is None:
                x = a  # "we adopt the first activation right after conv1 and before splitting into two paths"
            a = unit.conv2(activate(unit.bn2, unit.conv1(a)))
            x = x + (unit.conv3(activate(unit.bn3, a)) if hasattr(unit, "conv3") else a)
        first = layer.bn
        features[f"res{k + 2}"] = activate(first, x)
    return features


@pytest.mark.parametrize("name", ["preact_resnet18", "preact_resnet50"])
def test_features_match_the_papers_equations(name):
    net = build_backbone(name).eval()
    randomize_statistics(net)
    with torch.no_grad():
        for size in [(64, 96), (67, 101)]:
            image = torch.randn(1, 3, *size)
            assert_equal_features(net(image), paper_features(net, image))


@pytest.mark.parametrize("depth", [50, *(pytest.param(d, marks=pytest.mark.slow) for d in (101, 152))])
def test_timm_weights_load_and_features_match(depth, tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model(f"resnetv2_{depth}").eval()
    randomize_statistics(theirs)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)  # negative too: norm and pool must come in the same order
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = build_backbone(f"preact_resnet{depth}", weights=str(tmp_path / "timm.pth")).eval()
    assert from_timm_preact(theirs.state_dict()).keys() == {*ours.state_dict(), "fc.weight", "fc.bias"}
    image = torch.randn(1, 3, 67, 101)
    with torch.no_grad():
        assert_equal_features({"res5": ours(image)["res5"]}, {"res5": theirs.forward_features(image)})


@pytest.mark.parametrize("name", ["preact_resnet18", "preact_resnet50", "preact_resnet101"])
def test_features_are_normalized_and_rectified_at_initialization(name):
    for feature in build_backbone(name).train()(torch.randn(4, 3, 96, 96)).values():
        # The rectified standard normal has mean 0.40 and standard deviation 0.58.
        assert feature.min() == 0
        assert feature.mean().item() == pytest.approx(0.40, abs=0.02)
        assert feature.std().item() == pytest.approx(0.58, abs=0.05)
