"""The training loop, one for detection and for pretraining."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from .. import distributed
from ..errors import UserError
from .checkpoint import TrainingState, remove_earlier_run, save_checkpoint
from .ema import MovingAverage
from .logger import MetricLogger
from .nonfinite import NonFiniteSteps
from .preemption import PREEMPTED, Preemption
from .solver import NORMS, build_optimizer, build_schedule

logger = logging.getLogger(__name__)

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def fit(
    model: nn.Module,
    build_loader: Callable[..., Iterable],
    solver: DictConfig,
    output_dir: Path,
    evaluate: Callable[[], dict[str, float]],
    evaluation_period: int = 0,
    best_metric: str = "bbox/AP",
    metadata: dict | None = None,
    resume: bool = False,
    on_start: Callable[[], object] = lambda: None,
    patience: int | None = None,
) -> dict[str, float]:
    """Train `model` for `solver.max_iter` steps, leave its final weights in it and return its final metrics.

    Args:
        model: gives a dict of scalars for `model(images, targets)` in training; those whose names begin with "loss"
            are summed and minimized, the others are only logged.
        build_loader: endless batches of (images, targets) for this rank, from step `start` on.
        evaluate: metrics of the model as it is; called every `evaluation_period` steps (0: never) and at the end.
        best_metric: the metric whose best weights are kept in `best.pt`.
        metadata: what the checkpoints say about the model (see `weights.writing`).
        resume: continue from `last.pt` in `output_dir`, if there is one; otherwise an earlier run there is removed.
        on_start: called when all is ready for the first step, before anything in `output_dir` is changed.
        patience: end the run after this many evaluations in a row without a new best; None: never.

    Writes `last.pt`, `best.pt`, `metrics.jsonl`, `tensorboard/`. With `solver.ema_decay` the averaged weights are
    evaluated, kept in `best.pt` and final. SIGTERM and SIGUSR1 end the run after the step, with a checkpoint and
    `SystemExit(PREEMPTED)`. Raises `UserError` if more than `solver.max_nonfinite` steps are not finite.
    """
    state = build_state(model, solver)
    if resume:
        state.resume(output_dir / "last.pt", solver.max_iter)
    learning_rate, nonfinite = build_schedule(solver), NonFiniteSteps(model, solver.max_nonfinite, output_dir)
    model.train()
    parallel, metadata, metrics = distributed.wrap(model, state.device), {"metadata": metadata or {}}, {}

    is_due = partial(is_last_of_period, max_iter=solver.max_iter)
    on_start()
    if not resume:
        remove_earlier_run(output_dir)
    with MetricLogger(output_dir, state.step, solver) as log, Preemption() as preemption:
        if is_due(state.step, evaluation_period):  # resumed from the checkpoint that precedes an evaluation
            metrics = score(state, evaluate, best_metric, output_dir, metadata, log, preemption)
        batches = log.timed(iter(build_loader(start=state.step)))
        for step in steps_to_come(state, solver.max_iter, patience):
            outputs = train_step(parallel, batches, state, solver, learning_rate(step - 1), step, nonfinite)
            state.finish(step)
            log.step(step, outputs, learning_rate(step - 1))
            preempted = preemption.requested()
            if preempted or is_due(step, solver.checkpoint_period) or is_due(step, evaluation_period):
                save_checkpoint(output_dir / "last.pt", state.content() | metadata, solver.keep_checkpoints)
            if preempted:
                logger.warning("interrupted: saved after step %d; continue with --resume", step)
                raise SystemExit(PREEMPTED)
            if is_due(step, evaluation_period):
                metrics = score(state, evaluate, best_metric, output_dir, metadata, log, preemption)
    if state.average is not None:
        state.average.keep()
    return metrics


def steps_to_come(state: TrainingState, max_iter: int, patience: int | None) -> Iterator[int]:
    for step in range(state.step + 1, max_iter + 1):
        if patience is not None and state.stale >= patience:
            logger.info("ended after step %d: no new best in %d evaluations", state.step, patience)
            return
        yield step


def is_last_of_period(step: int, period: int, max_iter: int) -> bool:
    return step == max_iter or (period > 0 and step > 0 and step % period == 0)


def build_state(model: nn.Module, solver: DictConfig) -> TrainingState:
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=solver.amp == "fp16")
    average = None if solver.ema_decay is None else MovingAverage(model, solver.ema_decay, solver.ema_period)
    return TrainingState(model, build_optimizer(model, solver), scaler, average)


def train_step(
    parallel: nn.Module,
    batches: Iterator,
    state: TrainingState,
    solver: DictConfig,
    lr: float,
    step: int,
    nonfinite: NonFiniteSteps,
) -> dict[str, Tensor] | None:
    """One optimizer step over `solver.accumulate` batches; returns the model's outputs for the last of them.

    None if the loss or the gradients are not finite on some rank, in which case nothing has changed.
    """
    optimizer, scaler, parts = state.optimizer, state.scaler, []
    for group in optimizer.param_groups:
        group["lr"] = lr
    nonfinite.keep_statistics()
    finite = torch.ones((), dtype=torch.bool, device=state.device)
    for part in reversed(range(solver.accumulate)):
        images, targets = to_device(next(batches), state.device)
        with no_sync(parallel) if part else nullcontext():
            with torch.autocast(state.device.type, AMP_DTYPES[solver.amp], enabled=solver.amp != "none"):
                outputs = parallel(images, targets)
            loss = sum(value for name, value in outputs.items() if name.startswith("loss"))
            scaler.scale(loss / solver.accumulate).backward()
        finite &= torch.isfinite(loss.detach())
        parts.append((images, targets, outputs))
    scaler.unscale_(optimizer)
    trained = [p for p in parallel.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained])
    if not scaler.is_enabled():  # with fp16, the scaler itself skips gradients that overflow
        finite &= torch.isfinite(norm)
    skipped = nonfinite.skip(finite, step, parts)
    if not skipped:
        if solver.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, solver.clip_norm, norm)
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return None if skipped else outputs


def score(
    state: TrainingState,
    evaluate: Callable[[], dict[str, float]],
    best_metric: str,
    output_dir: Path,
    metadata: dict,
    log: MetricLogger,
    preemption: Preemption,
) -> dict[str, float]:
    """Evaluate the model, with its averaged weights if there are any, and keep the best in `best.pt`."""
    averaged = state.average.applied() if state.average is not None else nullcontext()
    with preemption.exits_at_once(), averaged, log.paused():
        metrics = evaluate()
        log.scalars(state.step, metrics)
        if best_metric not in metrics:
            raise UserError(f"The evaluation gives no {best_metric}, only {', '.join(metrics)}.")
        state.stale += 1
        if metrics[best_metric] > state.best:
            state.best, state.stale = metrics[best_metric], 0
            content = {"model": state.model.state_dict(), "step": state.step, "metrics": metrics}
            save_checkpoint(output_dir / "best.pt", content | metadata)
    return metrics


def memory_format(model: nn.Module, solver: DictConfig) -> torch.memory_format:
    """channels_last if `solver.channels_last` says so; if it is null, on the CPU when no norm is left to compute.

    PyTorch's BN and GN are slower in channels_last on the CPU, convolutions are faster.
    """
    channels_last = solver.channels_last
    if channels_last is None:
        on_cpu = next(model.parameters()).device.type == "cpu"
        channels_last = on_cpu and not any(isinstance(module, NORMS) for module in model.modules())
    return torch.channels_last if channels_last else torch.preserve_format


def set_seed(seed: int, deterministic: bool) -> None:
    """Seed torch; `deterministic` makes torch refuse kernels whose results may differ from run to run."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(True)


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or the tensors in lists, tuples and dicts, on `device`; other values as they are."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(v, device) for v in value)
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    return value


def no_sync(parallel: nn.Module) -> AbstractContextManager:
    return parallel.no_sync() if distributed.world_size() > 1 else nullcontext()
