"""In other people's code a backbone behaves like torchvision's ResNet."""

import copy
import pickle
import warnings

import pytest
import torch
import torchvision
from conftest import ROOT
from helpers import assert_equal_features, randomize_statistics
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor

from resnet_backbones import build_backbone

NAMES = ["resnet18", "resnext50_32x4d", "preact_resnet18", "seresnet18", "resnet18d", "plain18", "resnet18_fpn",
         "preact_resnet18_fpn"]  # fmt: skip
LAYERS = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}


def build(name: str, **options) -> nn.Module:
    net = build_backbone(name, **({"fpn_channels": 16} if name.endswith("_fpn") else {}) | options).eval()
    randomize_statistics(net)
    return net


def image(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 64, 96)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_module_names_and_order_match_torchvision(name):
    theirs, ours = torchvision.models.get_model(name), build_backbone(name)
    names = [n for n, _ in theirs.named_modules() if n not in ("avgpool", "fc")]
    added = (".se", ".drop_path")  # which are identities
    assert [n for n, _ in ours.named_modules() if not n.endswith(added)] == names


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "seresnet18", "resnet18d"])
def test_intermediate_layer_getter_gives_the_same_features(name):
    net, x = build(name), image()
    with torch.no_grad():
        assert_equal_features(IntermediateLayerGetter(net, LAYERS)(x), net(x))


@pytest.mark.parametrize("name", NAMES)
def test_hooks_on_every_module_fire(name):
    net, called = build(name), set()
    for module_name, module in net.named_modules():
        module.register_forward_hook(lambda *_, called=called, module_name=module_name: called.add(module_name))
    net(image())
    containers = {n for n, m in net.named_modules() if isinstance(m, nn.ModuleList)}
    assert called == {n for n, _ in net.named_modules()} - containers


@pytest.mark.parametrize("name", NAMES)
def test_fx_traces_and_extracts_a_node(name):
    net, x = build(name), image()
    with torch.no_grad():
        assert_equal_features(torch.fx.symbolic_trace(net)(x), net(x))
        layer = "body.layer3" if name.endswith("_fpn") else "layer3"
        extracted = create_feature_extractor(net, {layer: "y"})(x)["y"]
        expected = build_like(net, name)(x)["res4"]
        assert_equal_features({"res4": extracted}, {"res4": expected})


def build_like(net: nn.Module, name: str) -> nn.Module:
    body = build_backbone(name.removesuffix("_fpn"), out_features=["res4"]).eval()
    state = getattr(net, "body", net).state_dict()
    body.load_state_dict({k: v for k, v in state.items() if not k.startswith("layer4")})
    return body


@pytest.mark.parametrize("name", NAMES)
def test_torchscript_trace_and_script(name):
    net, x = build(name), image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for compiled in (torch.jit.trace(net, x, strict=False), torch.jit.script(net)):
            assert_equal_features(compiled(x), net(x))


@pytest.mark.parametrize("name", NAMES)
def test_per_sample_gradients_and_forward_mode_ad(name):
    net, x = build(name).double(), torch.randn(2, 3, 33, 32, dtype=torch.double)
    weights = {k: v.detach() for k, v in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def loss(weights, sample):
        features = torch.func.functional_call(net, (weights, buffers), (sample[None],))
        return sum(f.square().mean() for f in features.values())

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for k, sample in enumerate(x):
        net.zero_grad()
        sum(f.square().mean() for f in net(sample[None]).values()).backward()
        for n, p in net.named_parameters():
            torch.testing.assert_close(each[n][k], p.grad, rtol=1e-9, atol=1e-12)
    feature = next(iter(net.output_shape()))
    _, tangent = torch.func.jvp(lambda z: net(z)[feature], (x,), (torch.ones_like(x),))
    _, expected = torch.autograd.functional.jvp(lambda z: net(z)[feature], x, torch.ones_like(x))  # two backward passes
    torch.testing.assert_close(tangent, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
@pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")
def test_gradients_flow_between_features(norm):
    features = build("resnet18", norm=norm)(image())
    (gradient,) = torch.autograd.grad(features["res5"].sum(), features["res4"])
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_give_the_same_features(copied):
    net, x = build("preact_resnet18_fpn"), image()
    with torch.no_grad():
        assert all(torch.equal(f, copied(net)(x)[n]) for n, f in net(x).items())


def test_parametrizing_a_convolution_takes_effect():
    net, x = build("resnet18"), image()
    with torch.no_grad():
        before = net(x)["res5"]
        parametrizations.weight_norm(net.layer1[0].conv1)
        torch.testing.assert_close(net(x)["res5"], before, rtol=1e-4, atol=1e-4)
        net.layer1[0].conv1.parametrizations.weight.original0.mul_(2)
        assert not torch.allclose(net(x)["res5"], before, rtol=1e-2)


def test_replaced_layers_are_used():
    net, x = build("resnet18"), image()
    net.maxpool = nn.Identity()
    net.layer2[1].relu = nn.SiLU()
    with torch.no_grad():
        features = net(x)
        assert features["res2"].shape[-2:] == (32, 48)
        block, y = net.layer2[1], net.layer2[0](features["res2"])
        y = nn.functional.silu(block.bn2(block.conv2(nn.functional.silu(block.bn1(block.conv1(y))))) + y)
        torch.testing.assert_close(features["res3"], y)


def test_memory_format_follows_the_input_and_the_weights():
    net, x = build("resnet18"), image()
    with torch.no_grad():
        assert net(x)["res3"].is_contiguous()
        channels_last = net.to(memory_format=torch.channels_last)(x)["res3"]
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["distributed", "torch._C", "torch.ops.mkldnn"])
def test_models_use_neither_the_process_group_nor_torchs_internals(name):
    for path in (ROOT / "resnet_backbones" / "models").rglob("*.py"):
        assert name not in path.read_text(), path
