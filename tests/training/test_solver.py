import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from resnet_backbones.config import Config, SolverConfig
from resnet_backbones.training.solver import build_optimizer, build_schedule, scale_to_batch


def solver(**values):
    return OmegaConf.structured(SolverConfig(**values))


@pytest.mark.parametrize(
    ("step", "lr"),
    [(0, 2e-5), (500, 0.01001), (999, 0.01998), (1000, 0.02), (59999, 0.02), (60000, 0.002), (79999, 0.002),
     (80000, 0.0002), (89999, 0.0002)],
)  # fmt: skip
def test_the_1x_schedule(step, lr):
    schedule = build_schedule(solver(steps=[60000, 80000], max_iter=90000, lr=0.02))
    assert schedule(step) == pytest.approx(lr, rel=1e-3)


@pytest.mark.parametrize(("step", "lr"), [(0, 1.0), (25, 0.853553), (50, 0.5), (75, 0.146447), (99, 0.0002467)])
def test_cosine_schedule(step, lr):
    schedule = build_schedule(solver(schedule="cosine", max_iter=100, lr=1.0, warmup_iters=0))
    assert schedule(step) == pytest.approx(lr, rel=1e-3)


def test_warmup_leads_into_the_cosine_schedule():
    schedule = build_schedule(solver(schedule="cosine", max_iter=100, lr=1.0, warmup_iters=20, warmup_factor=0.1))
    rates = [schedule(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[20], rel=0.01)
    assert rates[:20] == sorted(rates[:20])


def test_a_short_run_of_a_long_schedule_never_reaches_its_steps():
    schedule = build_schedule(solver(steps=[60000, 80000], max_iter=10, lr=0.02, warmup_iters=0))
    assert [schedule(step) for step in range(10)] == [0.02] * 10


@pytest.mark.parametrize("max_iter", [1, 2, 3])
def test_step_schedule_of_very_short_runs(max_iter):
    schedule = build_schedule(solver(steps=[1, 2], max_iter=max_iter, lr=1.0, warmup_iters=0))
    assert [schedule(step) for step in range(max_iter)] == pytest.approx([1.0, 0.1, 0.01][:max_iter])


def test_frozen_parameters_are_not_optimized():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    optimizer = build_optimizer(model, solver(momentum=0.8, weight_decay=0.01))
    assert len(optimizer.param_groups[0]["params"]) == 2
    assert {(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.8, 0.01)}
    assert isinstance(optimizer, torch.optim.SGD)


def test_the_linear_scaling_rule_scales_lr_and_schedule_and_logs_it(caplog):
    config = OmegaConf.structured(Config)
    reference = {"reference_batch_size": 16, "batch_size": 64, "lr": 0.02, "max_iter": 90000, "steps": [60000, 80000]}
    config = OmegaConf.merge(config, {"solver": reference, "evaluation": {"period": 10000}})
    with caplog.at_level("INFO", "resnet_backbones"):
        scaled = scale_to_batch(config)
    assert scaled.solver.lr == pytest.approx(0.08)
    assert (scaled.solver.max_iter, scaled.solver.steps, scaled.solver.warmup_iters) == (22500, [15000, 20000], 250)
    assert (scaled.evaluation.period, scaled.solver.checkpoint_period) == (2500, 1250)
    assert "solver.lr scaled from 0.02 to 0.08" in caplog.text
    assert "solver.max_iter scaled from 90000 to 22500" in caplog.text
    unscaled = OmegaConf.merge(config, {"solver": {"reference_batch_size": None}})
    assert scale_to_batch(unscaled) == unscaled
