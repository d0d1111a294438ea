import pytest
import torch
import torchvision
from torch import nn

from resnet_backbones import FrozenBatchNorm2d, build_backbone
from resnet_backbones.backbones import allow_random_frozen
from resnet_backbones.errors import UserError
from resnet_backbones.models.freezing import freeze
from resnet_backbones.models.layers import get_norm, has_live_batch_norm


def random_batch_norm(channels: int = 16, eps: float = 1e-5) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=eps)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(1e-9, 2)
    return norm.eval()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_frozen_equals_batch_norm_in_eval_mode(eps):
    norm = random_batch_norm(eps=eps)
    frozen = FrozenBatchNorm2d.convert(norm)
    x = torch.randn(2, 16, 5, 7)
    assert relative_error(frozen.train()(x), norm(x).detach()) < 1e-6


def test_frozen_matches_torchvision():
    norm = random_batch_norm()
    theirs = torchvision.ops.FrozenBatchNorm2d(16)
    theirs.load_state_dict(norm.state_dict())
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(FrozenBatchNorm2d.convert(norm)(x), theirs(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_input_dtype_is_kept_and_small_variances_survive(dtype, grad):
    norm = random_batch_norm()
    x = torch.randn(2, 16, 5, 7)
    expected = norm(x).detach()
    frozen = FrozenBatchNorm2d.convert(norm)
    x.requires_grad_(grad)
    assert frozen(x.to(dtype)).dtype == dtype
    frozen = frozen.to(dtype)  # in 16 bits running_var of 1e-9 would be 0
    assert frozen.running_var.dtype == torch.float32
    assert frozen(x.to(dtype)).dtype == dtype
    assert relative_error(frozen(x.to(dtype)).detach(), expected) < (2e-3 if dtype == torch.half else 2e-2)


def test_double_is_kept():
    frozen = FrozenBatchNorm2d.convert(random_batch_norm()).double()
    assert frozen(torch.randn(1, 16, 2, 2, dtype=torch.float64)).dtype == torch.float64
    assert frozen.running_var.dtype == torch.float64


def test_convert_then_revert_gives_the_same_batch_norm():
    net = nn.Sequential(nn.Conv2d(3, 16, 1), random_batch_norm(eps=1e-3), nn.Sequential(random_batch_norm()))
    expected = {k: v.clone() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    frozen = FrozenBatchNorm2d.convert(net)
    assert not [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    back = FrozenBatchNorm2d.revert(frozen)
    assert isinstance(back[1], nn.BatchNorm2d)
    assert isinstance(back[2][0], nn.BatchNorm2d)
    assert back[1].eps == 1e-3
    assert all(torch.equal(back.state_dict()[k], v) for k, v in expected.items())
    assert all(p.requires_grad for p in back.parameters())


def test_frozen_checkpoints_load_strictly_into_batch_norm_and_back():
    norm, frozen = random_batch_norm(), FrozenBatchNorm2d(16)
    frozen.load_state_dict(norm.state_dict(), strict=True)
    nn.BatchNorm2d(16).load_state_dict(frozen.state_dict(), strict=True)
    assert torch.equal(frozen.running_mean, norm.running_mean)


def test_train_does_not_unfreeze_a_frozen_module():
    net = freeze(nn.Sequential(nn.Conv2d(3, 16, 1), random_batch_norm()))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()(torch.randn(4, 3, 5, 5) * 9)
    assert not [p for p in net.parameters() if p.requires_grad]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("FrozenBN", FrozenBatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("GN", nn.GroupNorm),
        ("none", nn.Identity),
    ],
)
def test_norms_by_name(name, kind):
    assert isinstance(get_norm(name, 64), kind)


def test_invalid_norms_are_refused():
    with pytest.raises(UserError, match="Unknown norm 'bn'.*Available: BN, FrozenBN, GN, SyncBN, none"):
        get_norm("bn", 64)
    with pytest.raises(UserError, match="multiples of its 32 groups, got 48"):
        get_norm("GN", 48)


@pytest.mark.parametrize(
    ("options", "live"),
    [
        ({}, True),
        ({"norm": "SyncBN"}, True),
        ({"freeze_at": 4}, True),
        ({"norm": "GN"}, False),
        ({"freeze_at": 5}, False),
    ],
)
def test_live_batch_norm_is_detected(options, live):
    with allow_random_frozen():
        assert has_live_batch_norm(build_backbone("resnet18", **options)) is live
