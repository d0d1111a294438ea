"""The options of residual nets, against timm, torchvision and their definitions."""

import pytest
import torch
import torchvision
from helpers import assert_equal_features, randomize_statistics
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from resnet_backbones import ShapeSpec, build_backbone
from resnet_backbones.errors import UserError

IMAGE = (1, 3, 65, 97)


def without_classifier(net: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize(
    "name",
    [
        *("seresnet18", "seresnet50", "resnet18d", "resnet50d", "resnet50c", "resnet18", "resnext50_32x4d"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("seresnet34", "seresnet101", "seresnet152", "seresnext50_32x4d", "seresnext101_32x4d", "senet154"),
                *("resnet34d", "resnet101d", "resnet152d", "resnet152", "wide_resnet50_2", "resnext101_64x4d"),
            )
        ),
    ],
)
def test_timm_state_dict_loads_strictly_and_features_match(name, output_stride):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model(name, output_stride=output_stride).eval()
    randomize_statistics(theirs)
    ours = build_backbone(name, output_stride=output_stride).eval()
    ours.load_state_dict(without_classifier(theirs), strict=True)
    layers = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
    image = torch.randn(IMAGE)
    with torch.no_grad():
        features = ours(image)
        assert_equal_features(features, IntermediateLayerGetter(theirs, layers)(image))
    for feature, shape in ours.output_shape().items():
        assert shape.stride == min(2 ** int(feature[3:]), output_stride)
        assert features[feature].shape[2:] == (-(-65 // shape.stride), -(-97 // shape.stride))


@pytest.mark.parametrize(("output_stride", "replace"), {16: (False, False, True), 8: (False, True, True)}.items())
def test_dilation_matches_torchvision(output_stride, replace):
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=replace).eval()
    randomize_statistics(theirs)
    ours = build_backbone("resnet50", output_stride=output_stride).eval()
    ours.load_state_dict(without_classifier(theirs), strict=True)
    image = torch.randn(IMAGE)
    with torch.no_grad():
        expected = IntermediateLayerGetter(theirs, {"layer4": "res5"})(image)
        assert_equal_features({"res5": ours(image)["res5"]}, expected)


@pytest.mark.parametrize("options", [{}, {"stride_in_1x1": True}, {"shortcut": "A"}, {"shortcut": "C"}])
@pytest.mark.parametrize("name", ["resnet50", "preact_resnet50"])
def test_dilated_net_subsampled_equals_the_strided_net(name, options):
    strided, dilated = (build_backbone(name, output_stride=s, **options).eval() for s in (32, 8))
    randomize_statistics(strided)
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        few, many = strided(image), dilated(image)
    for feature, step in {"res3": 1, "res4": 2, "res5": 4}.items():
        error = (many[feature][:, :, ::step, ::step] - few[feature]).abs().max() / few[feature].abs().max()
        assert error < 1e-5, feature


def test_stride_in_1x1_is_the_original_placement():
    original, v15 = build_backbone("resnet50", stride_in_1x1=True), build_backbone("resnet50")
    for net, conv, other in ((original, "conv1", "conv2"), (v15, "conv2", "conv1")):
        for layer in (net.layer2, net.layer3, net.layer4):
            assert getattr(layer[0], conv).stride == (2, 2)
            assert getattr(layer[0], other).stride == (1, 1)
    assert original.state_dict().keys() == v15.state_dict().keys()


def test_shortcut_a_pads_with_zeros_and_has_no_parameters():
    net = build_backbone("cifar_resnet20").eval()
    assert not any("downsample" in name for name, _ in net.named_parameters())
    block = net.layer2[0]
    nn.init.zeros_(block.bn2.weight)  # the residual is 0: what is left is relu(shortcut(x))
    x = torch.rand(2, 16, 7, 8)
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()
    with pytest.raises(UserError, match="shortcut A pads channels and cannot go from 128 to 64"):
        build_backbone(
            "resnet18", stem=lambda i, n: (nn.Conv2d(i, 128, 1), nn.Identity(), ShapeSpec(128, 4)), shortcut="A"
        )


@pytest.mark.parametrize(("shortcut", "projections"), {"A": 0, "B": 4, "C": 16, "D": 4, "none": 0}.items())
def test_number_of_projection_shortcuts_of_resnet50(shortcut, projections):
    net = build_backbone("resnet50", shortcut=shortcut)
    names = [n for n, m in net.named_modules() if ".downsample." in n and isinstance(m, nn.Conv2d)]
    assert len(names) == projections


def test_a_plain_net_is_a_residual_net_without_its_shortcuts():
    plain = build_backbone("plain18").eval()
    randomize_statistics(plain)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        _, y = plain.stem(x)
        for block in plain.layer1:
            y = block.bn2(block.conv2(block.bn1(block.conv1(y)).relu())).relu()
        torch.testing.assert_close(plain(x)["res2"], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("modulated", "factor"), {False: 1.0, True: 0.5}.items())
def test_deformable_convolution_starts_as_the_convolution_it_replaces(modulated, factor):
    plain = build_backbone("resnet50", norm="none").eval()
    net = build_backbone("resnet50", norm="none", deform_on=["res4", "res5"], deform_modulated=modulated).eval()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(".conv2.offset." in name for name in missing)
    assert sum(name.endswith("offset.weight") for name in missing) == 6 + 3
    x = torch.randn(1, 256, 9, 11)
    conv, deformed = plain.layer3[1].conv2, net.layer3[1].conv2
    with torch.no_grad():
        bias = conv.bias[:, None, None]
        torch.testing.assert_close(deformed(x) - bias, factor * (conv(x) - bias), rtol=1e-4, atol=1e-4)


def test_deformable_convolution_samples_at_its_offsets():
    net = build_backbone("resnet18", norm="none", deform_on=["res2"], deform_modulated=False)
    layer = net.layer1[0].conv2
    nn.init.zeros_(layer.bias)
    layer.offset.bias.data[0::2] = 1  # y of every position: one row down
    x = torch.randn(1, 64, 10, 12)
    with torch.no_grad():
        expected = nn.functional.conv2d(torch.roll(x, -1, 2), layer.weight, padding=1)
        torch.testing.assert_close(layer(x)[:, :, 1:-2], expected[:, :, 1:-2], rtol=1e-4, atol=1e-5)


def test_offsets_are_zero_after_loading_a_plain_checkpoint(tmp_path):
    theirs = torchvision.models.resnet50()
    torch.save(theirs.state_dict(), tmp_path / "r50.pth")
    net = build_backbone("resnet50", weights=str(tmp_path / "r50.pth"), deform_on=["res5"])
    assert not net.layer4[2].conv2.offset.weight.any()
    assert torch.equal(net.layer4[2].conv2.weight, theirs.layer4[2].conv2.weight)
    assert torch.equal(net.layer3[5].conv2.weight, theirs.layer3[5].conv2.weight)


def test_stochastic_depth_drops_later_blocks_more_often_and_only_in_training():
    net = build_backbone("resnet18", drop_path=0.4)
    probabilities = [m.p for m in net.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert probabilities == pytest.approx([0.4 * k / 8 for k in range(1, 9)])
    block = build_backbone("resnet18", drop_path=0.999999).layer4[1]
    x = torch.rand(4, 512, 3, 3)
    assert torch.equal(block.train()(x), x)
    assert not torch.equal(block.eval()(x), x)


@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "resnet18d"])
def test_zero_initialized_blocks_are_the_identity(name):
    block = build_backbone(name, zero_init_residual=True).layer1[1]
    x = torch.rand(2, block.conv1.in_channels, 5, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_checkpointed_stages_give_the_same_gradients_and_statistics(norm):
    torch.manual_seed(1)
    kept = build_backbone("resnet18", norm=norm).train()
    checkpointed = build_backbone("resnet18", norm=norm, checkpoint_stages=["res2", "res4"]).train()
    checkpointed.load_state_dict(kept.state_dict())
    image, runs = torch.randn(2, 3, 64, 64), []
    checkpointed.layer1[0].register_forward_pre_hook(lambda *_: runs.append("res2"))
    for net in (kept, checkpointed):
        net(image)["res5"].square().mean().backward()
    assert runs == ["res2", "res2"]
    for (name, one), other in zip(kept.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, one), other in zip(kept.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {"shortcut": "E"}, "Unknown shortcut 'E'. Available: A, A_centered, B, B3x3, C, D, none"),
        ("resnet50", {"output_stride": 4}, "output_stride is 4; it must be 8, 16 or 32"),
        ("cifar_resnet20", {"output_stride": 16}, "of a net whose stem has stride 4"),
        ("resnet50_fpn", {"output_stride": 16}, "p5 of an FPN has stride 32, but the backbone's res5 has 16"),
        ("resnet50", {"deform_on": ["res6"]}, "deform_on: Unknown stage 'res6'"),
        ("resnet50", {"deform_on": ["res5"], "out_features": ["res4"]}, "deform_on: Unknown stage 'res5'"),
        ("resnet50", {"checkpoint_stages": ["layer1"]}, "checkpoint_stages: Unknown stage 'layer1'"),
        ("resnet50", {"drop_path": 1.0}, "drop_path is 1.0; it must be at least 0 and less than 1"),
        ("resnet50", {"zero_init_residual": True, "norm": "none"}, "zero_init_residual needs a norm"),
        ("preact_resnet50", {"zero_init_residual": True}, "which pre-activation does not have"),
        ("cifar_resnet20", {"norm": "GN"}, "GN needs channels in multiples of its 32 groups, got 16"),
        ("resnet18", {"groups": 32}, "Unknown option of resnet18 'groups'"),
    ],
)
def test_invalid_options_are_refused(name, options, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build_backbone(name, **options)
