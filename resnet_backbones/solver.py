"""The optimiser and the learning rate as a pure function of progress."""

from collections.abc import Callable

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from omegaconf import DictConfig
from torch import nn


def build_optimizer(model: nn.Module, solver: DictConfig) -> torch.optim.Optimizer:
    """SGD with momentum over the parameters that are not frozen."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=solver.lr, momentum=solver.momentum, weight_decay=solver.weight_decay)


def build_schedule(solver: DictConfig) -> Callable[[int], float]:
    """The learning rate of each optimiser step, 0 … max_iter - 1.

    A linear warm-up over `warmup_iters` from `warmup_factor` of the schedule's value, then "steps" (times gamma at
    each of `steps`) or "cosine" (half a period from lr to 0 over max_iter, warm-up included). Steps at or past
    max_iter are never reached.
    """
    main: ParamScheduler
    if solver.schedule == "cosine":
        main = CosineParamScheduler(1.0, 0.0)
    else:
        steps = [step for step in solver.steps if step < solver.max_iter]
        values = [solver.gamma**k for k in range(len(steps) + 1)]
        main = MultiStepParamScheduler(values, solver.max_iter, steps)
    warmup = min(solver.warmup_iters / solver.max_iter, 1.0)
    if warmup > 0:
        start = LinearParamScheduler(solver.warmup_factor * main(0), main(warmup))
        main = CompositeParamScheduler(
            [start, main], lengths=[warmup, 1 - warmup], interval_scaling=["rescaled", "fixed"]
        )
    return lambda step: solver.lr * main(step / solver.max_iter)
