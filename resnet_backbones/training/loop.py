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

from .. import distributed
from ..errors import UserError
from .checkpoint import newest_whole, restore, save_checkpoint, training_state
from .ema import MovingAverage
from .logger import Journal
from .nonfinite import NonFinite
from .preemption import INTERRUPTED, Interruption
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
    `last.pt`, `best.pt`, `metrics.jsonl` and `tensorboard/` in `output_dir`.

    Steps whose loss or gradients are not finite are left out, up to `solver.max_nonfinite`; one more raises `UserError`
    naming the step and the images. SIGTERM and SIGUSR1 let the step finish, are answered by a checkpoint, and raise
    `SystemExit(INTERRUPTED)`.
    """
    device = next(model.parameters()).device
    if solver.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer, learning_rate = build_optimizer(model, solver), build_schedule(solver)
    scaler = torch.amp.GradScaler(device.type, enabled=solver.amp == "fp16")
    average = None if solver.ema_decay is None else MovingAverage(model, solver.ema_decay, solver.ema_period)
    last, start, best = output_dir / "last.pt", 0, -math.inf
    if resume and (whole := newest_whole(last)) is not None:
        start, best = restore(whole, model, optimizer, scaler, average)
        if start > solver.max_iter:
            raise UserError(f"{whole} is of step {start}, past solver.max_iter={solver.max_iter}; raise it to go on.")
    elif resume:
        logger.warning("there is no %s to resume from; starting at step 0", last)
    model.train()
    parallel = distributed.wrap(model, device)
    # The scaler of fp16 has a say of its own in what is left out.
    late = device.type == "cuda" and optimizer.defaults.get("fused", False) and not scaler.is_enabled()
    nonfinite = NonFinite(model, solver.max_nonfinite, output_dir, late)
    metadata, metrics = {"metadata": metadata or {}}, {}

    with (
        closing(Journal(output_dir, start, solver.max_iter, solver.batch_size, solver.log_period)) as journal,
        Interruption() as interruption,
    ):
        batches = journal.waiting(iter(build_loader(start=start)))
        for step in range(start, solver.max_iter + 1):
            final = step == solver.max_iter
            scored = final or _due(step, evaluation_period)
            if step > start:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step - 1)
                outputs = train_step(parallel, batches, optimizer, scaler, solver, step, nonfinite)
                if average is not None:
                    average.update(step)
                journal.advance(outputs, nonfinite.finite)
                if journal.due(step):
                    journal.record(step, learning_rate(step - 1))

                interrupted = interruption.agreed()
                if scored or interrupted or _due(step, solver.checkpoint_period):
                    nonfinite.read()
                    state = training_state(model, optimizer, scaler, average, step, best)
                    if distributed.is_main():
                        save_checkpoint(last, state | metadata, solver.keep_checkpoints)
                    journal.pause()
                if interrupted:
                    logger.warning("interrupted: saved after step %d, to go on with --resume", step)
                    raise SystemExit(INTERRUPTED)

            if scored:  # after the checkpoint, so that nothing is lost if this is interrupted; resuming scores anew
                with interruption.leaving_at_once(), average.applied() if average is not None else nullcontext():
                    metrics = evaluate()
                    journal.scalars(step, metrics)
                    if metrics[best_metric] > best:
                        best = metrics[best_metric]
                        if distributed.is_main():
                            content = {"model": model.state_dict(), "step": step, "metrics": metrics}
                            save_checkpoint(output_dir / "best.pt", content | metadata)
                journal.pause()
    if average is not None:
        average.keep()
    return metrics


def train_step(
    parallel: nn.Module,
    batches: Iterator,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    solver: DictConfig,
    step: int,
    nonfinite: NonFinite,
) -> dict[str, Tensor] | None:
    """One optimiser step over `solver.accumulate` batches; returns what the model gave for the last of them.

    None where loss or gradients were not finite: then nothing has changed. Nor has it where the host does not know yet
    (`nonfinite.late`), which nothing here waits for the device to tell.
    """
    device = next(parallel.parameters()).device
    nonfinite.begin_step()
    parts, finite = [], torch.ones((), dtype=torch.bool, device=device)
    for part in reversed(range(solver.accumulate)):
        images, targets = next(batches)
        images, targets = to_device(images, device), to_device(targets, device)
        with _no_sync(parallel) if part else nullcontext():
            with torch.autocast(device.type, AMP_DTYPES[solver.amp], enabled=solver.amp != "none"):
                outputs = parallel(images, targets)
            loss = sum(value for name, value in outputs.items() if name.startswith("loss"))
            finite &= torch.isfinite(loss.detach())
            scaler.scale(loss / solver.accumulate).backward()
        parts.append((images, targets, outputs))
    trained = [p for p in parallel.parameters() if p.grad is not None]
    scaler.unscale_(optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in trained])
    if not scaler.is_enabled():  # else gradients that overflow are the scaler's, which skips them and scales less
        finite &= torch.isfinite(norm)
    left_out = nonfinite.leave_out(finite, step, parts)
    if not left_out:
        if solver.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, solver.clip_norm, norm)
        if nonfinite.late:
            optimizer.grad_scale, optimizer.found_inf = None, (~nonfinite.finite).float()
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return None if left_out else outputs


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
    return period > 0 and step > 0 and step % period == 0


def _no_sync(parallel: nn.Module) -> AbstractContextManager:
    return parallel.no_sync() if distributed.world_size() > 1 else nullcontext()
