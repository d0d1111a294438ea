"""The fused optimisers compute what torch's plain ones do, also where torch leaves their user alone."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from resnet_backbones.config import SolverConfig
from resnet_backbones.training.solver import build_optimizer

SETTINGS = [
    {"lr": 1e-3},
    {"lr": 1e-3, "nesterov": True},
    {"lr": 1e-3, "momentum": 0.0},
    {"optimizer": "adamw", "lr": 1e-3},
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten())


def fused(model: nn.Module, **values) -> torch.optim.Optimizer:
    return build_optimizer(model, OmegaConf.structured(SolverConfig(**values)))


def plain(model: nn.Module, **values) -> torch.optim.Optimizer:
    """The same by torch's loop over parameters."""
    groups = [{"params": g["params"]} for g in fused(model, **values).param_groups]
    solver = SolverConfig(**values)
    decay = {"lr": solver.lr, "weight_decay": solver.weight_decay, "foreach": False}
    if solver.optimizer == "adamw":
        return torch.optim.AdamW(groups, **decay)
    return torch.optim.SGD(groups, **decay, momentum=solver.momentum, nesterov=solver.nesterov)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, scaler=None) -> None:
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    for k in range(first, last):
        optimizer.zero_grad()
        scaler.scale(
            model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k))).square().sum()
        ).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("values", SETTINGS)
def test_updates_are_those_of_the_plain_optimiser_and_are_counted(values):
    one, other = net(), net()
    optimizer = fused(one, **values)
    assert all(group["fused"] for group in optimizer.param_groups)
    train(one, optimizer, 0, 5)
    train(other, plain(other, **values), 0, 5)
    assert_same(one, other)
    versions = [p._version for p in one.parameters()]
    optimizer.step()
    assert all(p._version > before for p, before in zip(one.parameters(), versions, strict=True))


@pytest.mark.parametrize("values", SETTINGS)
@pytest.mark.parametrize("formats", [("contiguous_format", "channels_last"), ("channels_last", "contiguous_format")])
def test_a_checkpoint_of_a_plain_optimiser_is_gone_on_with_in_another_memory_format(tmp_path, values, formats):
    before, after = (getattr(torch, name) for name in formats)
    model = net().to(memory_format=before)
    optimizer = plain(model, **values)
    train(model, optimizer, 0, 3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.pt")
    train(model, optimizer, 3, 6)

    resumed = net().to(memory_format=after)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    resumed.load_state_dict(saved["model"])
    optimizer = fused(resumed, **values)
    optimizer.load_state_dict(saved["optimizer"])
    assert all(group["fused"] for group in optimizer.param_groups)
    train(resumed, optimizer, 3, 6)
    assert_same(model, resumed)


@pytest.mark.parametrize("values", SETTINGS)
def test_a_first_step_that_overflows_in_fp16_leaves_no_trace(values):
    models = [net(), net()]
    for model, make in zip(models, (fused, plain), strict=True):
        start = copy.deepcopy(model.state_dict())
        optimizer, scaler = make(model, **values), torch.amp.GradScaler("cpu", init_scale=2.0**127)
        train(model, optimizer, 0, 1, scaler)
        assert scaler.get_scale() == 2.0**126
        assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())
        scaler.update(2.0**10)
        train(model, optimizer, 1, 4, scaler)
    assert_same(*models)
