"""The training loop, one for detection and for pretraining."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from . import distributed
from .averaging import MovingAverage
from .checkpoint import newest_whole, restore, save_checkpoint, training_state
from .errors import UserError
from .journal import Journal
from .solver import build_optimizer, build_schedule

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
) -> dict[str, float]:
    """Train `model` for `solver.max_iter` steps, leave it with its final weights and return its final figures.

    Args:
        model: gives a dict for `model(images, targets)` in training mode; on its device. Its values are scalars; those
            whose names begin with "loss" are summed and trained on, the others only recorded.
        build_loader: endless batches of (images, targets) for this rank, from step `start` on.
        evaluate: figures of the model as it is; called every `evaluation_period` steps (0: never) and at the end.
        best_metric: the figure whose best weights are kept in `best.pt`.
        metadata: what the checkpoints say of the model, its preprocessing above all (see `weights`).
        resume: go on from `last.pt` in `output_dir`, or from the newest earlier one that is whole, if there is any.

    With `solver.ema_decay` the averaged weights are scored, kept in `best.pt` and final; `last.pt` has both. Leaves
    `last.pt`, `best.pt`, `metrics.jsonl` and `tensorboard/` in `output_dir`. Raises `UserError` naming the step and the
    images where the loss is not finite.
    """
    device = next(model.parameters()).device
    optimizer, learning_rate = build_optimizer(model, solver), build_schedule(solver)
    scaler = torch.amp.GradScaler(device.type, enabled=solver.amp == "fp16")
    average = None if solver.ema_decay is None else MovingAverage(model, solver.ema_decay, solver.ema_period)
    last, start, best = output_dir / "last.pt", 0, -math.inf
    if resume and (whole := newest_whole(last)) is not None:
        start, best = restore(whole, model, optimizer, scaler, average)
    elif resume:
        logger.warning("there is no %s to resume from; starting at step 0", last)
    if solver.channels_last:
        model.to(memory_format=torch.channels_last)
    model.train()
    parallel = distributed.wrap(model, device)
    metrics: dict[str, float] = {}

    with closing(Journal(output_dir, start, solver.max_iter, solver.batch_size, solver.log_period)) as journal:
        batches = journal.waiting(iter(build_loader(start=start)))
        for step in range(start + 1, solver.max_iter + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step - 1)
            journal.add(train_step(parallel, batches, optimizer, scaler, solver, step))
            journal.advance()
            if average is not None:
                average.update(step)
            if journal.due(step):
                journal.record(step, learning_rate(step - 1))

            final = step == solver.max_iter
            if final or _due(step, evaluation_period):
                with average.applied() if average is not None else nullcontext():
                    metrics = evaluate()
                    journal.scalars(step, metrics)
                    if metrics[best_metric] > best:
                        best = metrics[best_metric]
                        if distributed.is_main():
                            content = {"model": model.state_dict(), "step": step, "metrics": metrics}
                            save_checkpoint(output_dir / "best.pt", content | {"metadata": metadata or {}})
                journal.pause()
            if final or _due(step, solver.checkpoint_period):
                state = training_state(model, optimizer, scaler, average, step, best)
                if distributed.is_main():
                    save_checkpoint(last, state | {"metadata": metadata or {}}, solver.keep_checkpoints)
                journal.pause()
    if average is not None:
        average.keep()
    return metrics or evaluate()


def train_step(
    parallel: nn.Module,
    batches: Iterator,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    solver: DictConfig,
    step: int,
) -> dict[str, Tensor]:
    """One optimiser step over `solver.accumulate` batches; returns what the model gave for the last of them."""
    device = next(parallel.parameters()).device
    for part in reversed(range(solver.accumulate)):
        images, targets = next(batches)
        images, targets = to_device(images, device), to_device(targets, device)
        with _no_sync(parallel) if part else nullcontext():
            with torch.autocast(device.type, AMP_DTYPES[solver.amp], enabled=solver.amp != "none"):
                outputs = parallel(images, targets)
            losses = {name: value for name, value in outputs.items() if name.startswith("loss")}
            loss = sum(losses.values())
            _check_finite(loss, losses, step, targets)
            scaler.scale(loss / solver.accumulate).backward()
    if solver.clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parallel.parameters(), solver.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return outputs


def set_seed(seed: int, deterministic: bool) -> None:
    """Seed torch; `deterministic` makes torch refuse kernels whose result may differ from run to run."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or lists and dicts of some, on `device`; other values as they are."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [to_device(v, device) for v in value]
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    return value


def _due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def _no_sync(parallel: nn.Module) -> AbstractContextManager:
    return parallel.no_sync() if distributed.world_size() > 1 else nullcontext()


def _check_finite(loss: Tensor, losses: dict[str, Tensor], step: int, targets: list[dict] | dict) -> None:
    if not torch.isfinite(loss):
        terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
        files = targets["file_name"] if isinstance(targets, dict) else [target["file_name"] for target in targets]
        shown = ", ".join(files[:8]) + (" …" if len(files) > 8 else "")
        raise UserError(f"The loss is not finite at step {step} ({terms}), images {shown}. Lower solver.lr?")
