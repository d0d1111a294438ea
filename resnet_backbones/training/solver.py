"""The optimizer, and the learning rate as a pure function of progress."""

import logging
import math
from collections.abc import Callable

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..optional import import_timm

logger = logging.getLogger(__name__)

COUNTS = ("max_iter", "warmup_iters", "checkpoint_period", "ema_period")  # what a solver counts in iterations
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(model: nn.Module, solver: DictConfig) -> torch.optim.Optimizer:
    """SGD with momentum, AdamW or LAMB (arXiv 1904.00962, timm's) over the parameters that are not frozen.

    Those of norms decay by `norm_weight_decay`, if it is given. Raises `UserError` if LAMB lacks timm.
    """
    norms = {p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    norm_decay = solver.weight_decay if solver.norm_weight_decay is None else solver.norm_weight_decay
    groups = [
        {"params": [p for p in trained if p not in norms], "weight_decay": solver.weight_decay},
        {"params": [p for p in trained if p in norms], "weight_decay": norm_decay},
    ]
    if solver.optimizer == "lamb":
        return import_timm().optim.Lamb(groups, lr=solver.lr)
    if solver.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=solver.lr)
    return torch.optim.SGD(groups, lr=solver.lr, momentum=solver.momentum, nesterov=solver.nesterov)


def scale_to_batch(config: DictConfig) -> DictConfig:
    """The config with lr and schedule scaled from `solver.reference_batch_size` to `solver.batch_size`.

    The linear rule (arXiv 1706.02677 §2.1): lr grows with the batch, and everything counted in iterations shrinks, so
    that the same number of images is seen. The log says what was scaled; without a reference nothing is.
    """
    solver = config.solver
    if solver.reference_batch_size in (None, solver.batch_size):
        return config
    factor = solver.batch_size / solver.reference_batch_size
    scaled = {"solver": {"lr": solver.lr * factor, "reference_batch_size": None}, "evaluation": {}}
    for section, key in [("solver", key) for key in COUNTS] + [("evaluation", "period")]:
        value = config[section][key]
        if isinstance(value, int) and value > 0:
            scaled[section][key] = max(1, round(value / factor))
    scaled["solver"]["steps"] = sorted({max(1, round(step / factor)) for step in solver.steps})
    for section, values in scaled.items():
        for key, value in values.items():
            if key != "reference_batch_size" and value != config[section][key]:
                logger.info("%s.%s scaled from %s to %s", section, key, config[section][key], value)
    return OmegaConf.merge(config, scaled)


def in_iterations(solver: DictConfig, images: int) -> DictConfig:
    """The solver of a `PretrainConfig` with its epochs of `images` turned into iterations."""
    if solver.epochs is None:
        return solver
    steps_an_epoch = images / solver.batch_size
    counted = {
        "max_iter": max(1, math.ceil(solver.epochs * steps_an_epoch)),
        "steps": sorted({max(1, round(epoch * steps_an_epoch)) for epoch in solver.step_epochs}),
        "warmup_iters": round(solver.warmup_epochs * steps_an_epoch),
    }
    return OmegaConf.merge(solver, counted)


def build_schedule(solver: DictConfig) -> Callable[[int], float]:
    """The learning rate of each optimizer step, 0 … max_iter - 1.

    A warm-up over `warmup_iters`, linear from `warmup_factor` of the schedule's value or constant at it, then "steps"
    (times gamma at each of `steps`) or "cosine" (half a period from lr to 0 over max_iter, warm-up included). Steps at
    or past max_iter are never reached.
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
        first = solver.warmup_factor * main(0)
        start = LinearParamScheduler(first, first if solver.warmup_method == "constant" else main(warmup))
        main = CompositeParamScheduler(
            [start, main], lengths=[warmup, 1 - warmup], interval_scaling=["rescaled", "fixed"]
        )
    return lambda step: solver.lr * main(step / solver.max_iter)
