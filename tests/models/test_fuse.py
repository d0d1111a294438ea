"""Folding and fusing norms: the same features and gradients, alone and inside any detector."""

import copy
import pickle

import pytest
import torch
import torchvision
from conftest import REPRESENTATIVES
from helpers import randomize_statistics
from torch import nn

from resnet_backbones import FrozenBatchNorm2d, build_backbone, fold_norms, fuse
from resnet_backbones.detectors.torchvision import faster_rcnn
from resnet_backbones.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")

# Nets with every kind of block, stem and shortcut, and with whatever else can come next to a convolution.
NETS = [
    *((name, {}) for name in REPRESENTATIVES if name not in ("zfnet", "convnext_tiny", "swin_t")),
    ("resnet50", {"stride_in_1x1": True}),
    ("resnet18", {"shortcut": "C", "output_stride": 8}),
    ("resnet18", {"deform_on": ["res4"]}),
    ("resnet18", {"checkpoint_stages": ["res3"]}),
    ("cifar_resnet20", {}),
    ("resnet18_fpn", {"fpn_norm": "BN", "fpn_channels": 16}),
]


def build(name: str, norm: str = "BN", **options) -> nn.Module:
    """A net with statistics like a trained one's, in double precision so that rounding does not flip a ReLU."""
    net = build_backbone(name, norm="BN", **options).double()
    randomize_statistics(net)
    return FrozenBatchNorm2d.convert(net) if norm == "FrozenBN" else net


def assert_close(got: dict, expected: dict, tolerance: float = 1e-12) -> None:
    assert list(got) == list(expected)
    for name, feature in expected.items():
        error = (got[name] - feature).abs().max() / feature.abs().max()
        assert error <= tolerance, f"{name}: {error}"


def gradients(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    net.zero_grad()
    sum(f.square().mean() for f in net(x).values()).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "options"), NETS)
def test_folding_and_fusing_keep_the_features(name, options):
    x = torch.randn(2, 3, 33, 65, dtype=torch.double)
    for norm in ("BN", "FrozenBN"):
        net = build(name, norm, **options).eval()
        with torch.no_grad():
            expected = net(x)
            assert_close(fuse(net)(x), expected)
            names = list(net.state_dict())
            assert_close(fold_norms(net)(x), expected)
            assert_close(fuse(net)(x), expected)
        assert list(net.state_dict()) == names


@pytest.mark.parametrize(("name", "options"), [pair for pair in NETS if "regnet" not in pair[0]])
def test_folding_keeps_the_gradients_with_frozen_stages(name, options):
    torch.manual_seed(1)
    net = build(name, "FrozenBN", **options).train()
    for stage in ("conv1", "layer1"):
        if hasattr(net, stage):
            net.get_submodule(stage).requires_grad_(False)
    folded = fold_norms(copy.deepcopy(net))
    x = torch.randn(2, 3, 32, 64, dtype=torch.double)
    torch.manual_seed(2)  # for dropout
    expected = gradients(net, x)
    torch.manual_seed(2)
    assert_close(gradients(folded, x), expected, 1e-9)


@pytest.mark.parametrize("name", ["resnet50", "preact_resnet18", "googlenet", "densenet121", "resnet18d"])
def test_every_norm_after_a_convolution_is_folded(name):
    net = fold_norms(build(name, "FrozenBN"))
    left = [n for n, m in net.named_modules() if type(m) is FrozenBatchNorm2d]
    # Norms of pre-activated sums and of DenseNet's concatenations do not follow a convolution.
    own = {"preact_resnet18": ("bn1", "bn"), "densenet121": ("norm1", "norm", "norm5")}.get(name, ())
    assert {n.rpartition(".")[2] for n in left} == set(own)


def test_folding_keeps_trainable_parameters_and_state_dict():
    net = build("resnet18", "FrozenBN")
    trained, state = [n for n, p in net.named_parameters() if p.requires_grad], net.state_dict()
    folded = fold_norms(net)
    assert folded is net
    assert [n for n, p in net.named_parameters() if p.requires_grad] == trained
    assert all(torch.equal(folded.state_dict()[name], value) for name, value in state.items())
    plain = build_backbone("resnet18").double().eval()
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        assert_close(folded(x), plain(x))


WRITES = {
    "p.data.mul_(0.5)": lambda p: p.data.mul_(0.5),
    "p.data.neg_()": lambda p: p.data.neg_(),
    "channels swapped": lambda p: p.data.copy_(p.data.flip(1)),
    "a numpy view": lambda p: p.detach().numpy().__imul__(0.5),
    "no_grad": lambda p: p.mul_(0.5),
    "p.data set": lambda p: setattr(p, "data", p.data * 0.5),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("prepare", [lambda net: net, fold_norms], ids=["plain", "folded"])
def test_weight_updates_of_any_kind_take_effect_at_the_next_call(write, prepare):
    x = torch.randn(1, 3, 64, 64, dtype=torch.double)
    net, fresh = prepare(build("resnet18", "FrozenBN").eval()), build("resnet18", "FrozenBN").eval()
    with torch.no_grad():
        net(x), net(x)
        for parameter in net.parameters():
            if parameter.dim() == 4:
                write(parameter)
        net.bn1.running_mean += 0.1
        fresh.load_state_dict(net.state_dict())
        assert_close(net(x), fresh(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("prepare", [fold_norms, fuse])
def test_copies_are_independent(copied, prepare):
    net = prepare(build("resnet18", "FrozenBN").eval())
    x = torch.randn(1, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        expected, other = net(x), copied(net)
        assert_close(other(x), expected, 0)
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.mul_(2)
        assert_close(other(x), expected, 0)


def test_fused_model_refuses_to_train_and_original_is_unchanged():
    net = build("resnet18").train()
    fused = fuse(net)
    assert net.training
    assert isinstance(net.bn1, nn.BatchNorm2d)
    assert not fused.training
    assert fused.eval() is fused
    with pytest.raises(UserError, match="A fused model is for inference; train the model that it was made from"):
        fused.train()
    with pytest.raises(UserError, match="for inference"):
        nn.Sequential(fused).train()


def test_reverting_folded_norms_is_refused():
    with pytest.raises(UserError, match="The norms are folded into their convolutions"):
        FrozenBatchNorm2d.revert(fold_norms(build("resnet18", "FrozenBN")))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.half, 1e-2)])
def test_other_dtypes_and_autocast_stay_close(dtype, tolerance):
    x = torch.randn(1, 3, 64, 64)
    net = build("resnet18", "FrozenBN").eval().float()
    with torch.no_grad():
        expected = net(x)["res4"]
        for prepare in (fold_norms, fuse):
            prepared = prepare(copy.deepcopy(net))
            with torch.autocast("cpu", dtype):
                cast = prepared(x)["res4"]
            got = prepared.to(dtype)(x.to(dtype))["res4"]
            for feature in (cast, got):
                assert feature.dtype == dtype
                assert (feature.float() - expected).abs().max() <= tolerance * expected.abs().max()


def test_fuse_skips_a_block_that_does_not_list_its_norms():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.bn(self.conv(x)).relu()

    block, x = Block().eval(), torch.randn(1, 3, 9, 9)
    randomize_statistics(block)
    assert torch.equal(fuse(block)(x), block(x))
    assert isinstance(fuse(block).bn, nn.BatchNorm2d)


class OneMap(nn.Module):
    """res5 alone: the form in which torchvision's detectors take a backbone without an FPN."""

    out_channels = 512

    def __init__(self) -> None:
        super().__init__()
        self.backbone = build("resnet18", "FrozenBN")

    def forward(self, images):
        return self.backbone(images)["res5"]


def our_detector() -> nn.Module:
    backbone = build("resnet18_fpn", "FrozenBN", fpn_channels=32)
    return faster_rcnn(backbone, 3, min_size=[64], max_size=96, box_head_width=32)


def torchvision_detector() -> nn.Module:
    anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),))
    pooler = torchvision.ops.MultiScaleRoIAlign(["0"], 7, 2)
    options = {"rpn_anchor_generator": anchors, "box_roi_pool": pooler, "min_size": 64, "max_size": 96}
    return torchvision.models.detection.FasterRCNN(OneMap(), 4, **options)


@pytest.mark.parametrize("make", [our_detector, torchvision_detector])
def test_detector_keeps_its_detections_and_losses(make):
    model, image = make().double().eval(), torch.rand(3, 64, 80, dtype=torch.double)
    target = {"boxes": torch.tensor([[5.0, 5, 40, 40]], dtype=torch.double), "labels": torch.tensor([1])}
    folded = fold_norms(copy.deepcopy(model))
    with torch.no_grad():
        expected = model([image])[0]
        for prepared in (fuse(model), folded, fuse(folded)):
            assert sum(type(m) is FrozenBatchNorm2d for m in prepared.modules()) == 0
            for key, value in prepared([image])[0].items():
                torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-9)
    losses = []
    for trained in (model, folded):
        torch.manual_seed(0)
        losses.append(trained.train()([image], [dict(target)]))
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-9, atol=1e-9)
