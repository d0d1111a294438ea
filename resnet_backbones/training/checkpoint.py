"""The files that a run resumes from, `last.pt` and `best.pt`, and their removal before another run."""

import logging
import math
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import distributed
from ..errors import UserError, reason
from ..paths import atomic_write
from ..weights import load_state_dict
from .ema import MovingAverage

logger = logging.getLogger(__name__)

# What would pass for a result of the next run in the folder; its log is continued.
CHECKPOINTS = ("last.pt", "last-[0-9]*.pt")
RESULTS = (*CHECKPOINTS, "best.pt", "metrics.json", "metrics.jsonl", "predictions.json", "model.safetensors")
RESULTS += ("report.html", "report.json")


@dataclass
class TrainingState:
    """All that a run needs to continue after `step` finished steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    step: int = 0
    best: float = -math.inf
    stale: int = 0  # evaluations since the best one

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def finish(self, step: int) -> None:
        """Call after optimizer step number `step`."""
        self.step = step
        if self.average is not None:
            self.average.update(step)

    def content(self) -> dict:
        """What a checkpoint holds; every rank must call it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else {},
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "random": distributed.gather(random_state()),
        }

    def resume(self, path: Path, max_iter: int) -> None:
        """Restore what was saved to `path` or, if it cannot be read, to the newest earlier one (`last-1.pt` …).

        Random states are restored if the number of ranks is the same. Raises `UserError` if none can be read, and for
        the checkpoint of another model, optimizer or longer run.
        """
        path, content = newest_readable(path)
        if content is None:
            logger.warning("there is no %s to resume from; starting at step 0", path)
            return
        try:
            self.restore(content, path)
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            kind = "" if isinstance(error, KeyError) else f"{type(error).__name__}: "  # which `reason` names
            raise UserError(
                f"{path} cannot be resumed from: {kind}{reason(error)}. Was it saved with another "
                "solver.optimizer, solver.ema_decay or backbone.freeze_at?"
            ) from error
        if self.step > max_iter:
            raise UserError(f"{path} is from step {self.step}, past solver.max_iter={max_iter}; raise it to continue.")
        logger.info("resumed from %s after step %d", path, self.step)

    def restore(self, content: dict, path: Path) -> None:
        """Restore what `content()` returned when `path` was saved."""
        load_state_dict(self.model, content["model"], str(path))
        settings = set(self.optimizer.param_groups[0])
        self.optimizer.load_state_dict(content["optimizer"])  # also accepts the state of any other class
        lacking = settings - set(self.optimizer.param_groups[0])
        if lacking:
            raise ValueError(f"its optimizer has no {', '.join(sorted(lacking))}")
        if self.scaler.is_enabled() and content["scaler"]:  # empty if the run had no fp16 so far
            self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.step, self.best = int(content["step"]), float(content["best"])
        self.stale = content.get("stale", 0)
        restore_random_state(content["random"], path)


def save_checkpoint(path: Path, content: dict, keep: int = 1) -> None:
    """On the main rank, write `content` whole or not at all.

    With `keep` above 1 the old file becomes `NAME-1.pt`, that one `NAME-2.pt` and so on. Raises `UserError` if it
    cannot be written.
    """
    if not distributed.is_main():
        return
    try:
        with atomic_write(path) as temporary:
            torch.save(content, temporary)
            for k in range(keep - 1, 0, -1):
                if earlier(path, k - 1).exists():
                    os.replace(earlier(path, k - 1), earlier(path, k))
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(path.parent).free >> 20
        raise UserError(f"Checkpoint {path} cannot be written, {free} MiB are free: {reason(error)}") from error


def earlier(path: Path, k: int) -> Path:
    """The checkpoint `k` writes before `path`."""
    return path if k == 0 else path.with_name(f"{path.stem}-{k}{path.suffix}")


def newest_readable(path: Path) -> tuple[Path, dict | None]:
    """The newest of `path`, `last-1.pt`, … that torch can read, and its content; None if there is no file.

    Raises `UserError` naming each fault if files exist but none can be read.
    """
    faults = []
    for candidate in filter(Path.exists, (earlier(path, k) for k in range(100))):
        try:
            return candidate, torch.load(candidate, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # torch's own message is a page on weights_only
            fault = "it is not a checkpoint that torch can read without running code"
        except Exception as error:  # a damaged file can raise anything
            fault = reason(error)
        faults.append(f"{candidate} cannot be resumed from: {fault}")
        logger.warning("%s", faults[-1])
    if faults:
        raise UserError("; ".join(faults))
    return path, None


def remove_earlier_run(folder: Path) -> None:
    """On the main rank, remove the checkpoints and results of a run that `folder` holds, and log that it is replaced.

    Otherwise `--resume` could continue another run than the one that was started last.
    """
    if not distributed.is_main() or not any(file for pattern in CHECKPOINTS for file in folder.glob(pattern)):
        return
    try:
        _, content = newest_readable(folder / "last.pt")
        step = f"step {content['step']}"
    except (UserError, LookupError, TypeError):
        step = "an unknown step"
    logger.warning("the earlier run in %s, at %s, is replaced; --resume would have continued it", folder, step)
    for file in (file for pattern in RESULTS for file in folder.glob(pattern)):
        file.unlink()


def random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(states: list[dict[str, torch.Tensor]], path: Path) -> None:
    """Restore this rank's state from those saved to `path`, if the number of ranks is the same."""
    if len(states) != distributed.world_size():
        logger.warning(
            "%s was written by %d ranks and is resumed by %d, at the same sample; random draws that do not come "
            "from a sample's seed (dropout, stochastic depth, mixing) will differ",
            *(path, len(states), distributed.world_size()),
        )
        return
    state = states[distributed.rank()]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
