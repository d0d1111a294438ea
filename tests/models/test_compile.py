"""torch.compile of a backbone: the same features and gradients, few recompilations, and what must keep working."""

import copy

import pytest
import torch
from helpers import randomize_statistics
from torch import nn

from resnet_backbones import FrozenBatchNorm2d, build_backbone, fold_norms
from resnet_backbones.detectors import compile_detector
from resnet_backbones.detectors.torchvision import faster_rcnn
from resnet_backbones.models.compile import compile_backbone
from resnet_backbones.training.ema import MovingAverage

pytestmark = pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")
TRACED = "aot_eager"  # traced and differentiated as for every backend, without generating code


@pytest.fixture(autouse=True)
def _reset_compiler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def build() -> nn.Module:
    net = build_backbone("resnet18_fpn", fpn_channels=16)
    randomize_statistics(net)
    return fold_norms(FrozenBatchNorm2d.convert(net))


def features_and_gradients(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    net.zero_grad()
    features = net(images)
    sum(f.square().mean() for f in features.values()).backward()
    return [*(f.detach() for f in features.values()), *(p.grad for p in net.parameters() if p.requires_grad)]


def assert_agree(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() <= 1e-8 * other.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("backend", [TRACED, "inductor"])
def test_each_size_is_compiled_once_for_training_and_once_for_evaluation(backend):
    net = build().double()  # float32 rounding could flip a ReLU in one of them
    compiled = compile_backbone(copy.deepcopy(net), backend=backend)
    sizes = [(64, 96), (128, 64), (64, 96), (128, 64)]
    for size in sizes:
        images = torch.randn(2, 3, *size, dtype=torch.double)
        assert_agree(features_and_gradients(compiled, images), features_and_gradients(net, images))
    assert graphs() == 2
    net.eval(), compiled.eval()
    for size in sizes:
        images = torch.randn(2, 3, *size, dtype=torch.double)
        with torch.no_grad():
            assert_agree(list(compiled(images).values()), list(net(images).values()))
    assert graphs() == 4


@pytest.mark.slow
def test_float32_passes_match_the_eager_net():
    net = build()
    compiled = compile_backbone(copy.deepcopy(net), backend=TRACED)
    images = torch.randn(2, 3, 64, 96)
    for training in (True, False):
        net.train(training), compiled.train(training)
        pairs = zip(features_and_gradients(compiled, images), features_and_gradients(net, images), strict=True)
        for one, other in pairs:
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    with torch.no_grad():
        for name, feature in net(images).items():
            assert (compiled(images)[name] - feature).abs().max() <= 1e-5 * feature.abs().max()


def test_compiled_detectors_pad_to_few_sizes():
    model = faster_rcnn(build(), 3, min_size=[90], max_size=200)
    compile_detector(model, "default")
    padded = [model.transform([torch.rand(3, height, 100)])[0].tensors.shape[2:] for height in (80, 95, 120, 150)]
    assert {tuple(size) for size in padded} == {(128, 128), (256, 128)}


def test_state_dict_and_moving_average_work_on_a_compiled_net():
    net = build()
    names = list(net.state_dict())
    images = torch.randn(2, 3, 64, 96)
    compiled = compile_backbone(net, backend=TRACED)
    assert compiled is net
    assert list(net.state_dict()) == names
    with torch.no_grad():
        before = net(images)["p2"]
        average = MovingAverage(net, 0.5, 1)  # a deep copy
        for parameter in net.parameters():
            parameter.mul_(0.9)
        changed = net(images)["p2"]
        assert not torch.allclose(changed, before, rtol=1e-2)
        with average.applied():
            torch.testing.assert_close(net(images)["p2"], before)
        net.load_state_dict(average.average.module.state_dict())
        torch.testing.assert_close(net(images)["p2"], before)


def test_autocast_dtype_is_kept():
    net, images = build(), torch.randn(2, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = net(images)["p3"]
        got = compile_backbone(net, backend=TRACED)(images)["p3"]
    assert got.dtype == expected.dtype == torch.bfloat16
    assert (got - expected).abs().max() <= 5e-2 * expected.abs().max()


def test_failed_compilation_falls_back_to_eager():
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    torch._dynamo.register_backend(broken, name="broken")
    net, images = build().double(), torch.randn(2, 3, 64, 96, dtype=torch.double)
    expected = features_and_gradients(net, images)
    compile_backbone(net, backend="broken")
    assert_agree(features_and_gradients(net, images), expected)


def test_hooks_fire_on_a_compiled_net():
    net, seen = compile_backbone(build(), backend=TRACED).eval(), []
    net.body.layer2[0].conv1.register_forward_hook(lambda module, inputs, y: seen.append(tuple(y.shape)))
    with torch.no_grad():
        net(torch.randn(2, 3, 64, 96))
    assert seen == [(2, 128, 8, 12)]
