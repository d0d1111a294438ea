"""The files that training leaves to go on from: `last.pt` and `best.pt`."""

import logging
import os
from pathlib import Path

import torch
from torch import nn

from . import distributed
from .errors import UserError, reason
from .weights import load_state_dict

logger = logging.getLogger(__name__)

# What a checkpoint to resume from holds.
STATE = {
    "model": dict, "optimizer": dict, "scaler": dict, "average": dict, "step": int, "best": float, "random": list,
}  # fmt: skip


def save_checkpoint(path: Path, content: dict) -> None:
    """Write `content` whole or not at all: to a temporary name first, then renamed over the old file."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        kept = "; the previous one is whole" if path.is_file() else ""
        raise UserError(f"Checkpoint {path} cannot be written: {error}{kept}.") from error


def training_state(model: nn.Module, optimizer, scaler, average, step: int, best: float) -> dict:
    """All that a run needs to go on after `step` finished steps; every rank takes part, the main rank saves it."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "average": average.state_dict() if average is not None else {},
        "step": step,
        "best": best,
        "random": distributed.gather(_random_state()),
    }


def restore(path: Path, model: nn.Module, optimizer, scaler, average) -> tuple[int, float]:
    """Restore `training_state` from `path`; returns the finished steps and the best metric so far.

    Random states are restored where the number of ranks is the same. Raises `UserError` for a damaged file or another
    architecture.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is no checkpoint to resume from: {reason(error)}") from error
    missing = [key for key in STATE if not isinstance(state, dict) or not isinstance(state.get(key), STATE[key])]
    if missing:
        raise UserError(f"{path} is no checkpoint to resume from: it lacks {', '.join(missing)}.")
    load_state_dict(model, state["model"], str(path))
    try:
        optimizer.load_state_dict(state["optimizer"])
        if scaler.is_enabled() and state["scaler"]:  # empty where the run was without fp16 so far
            scaler.load_state_dict(state["scaler"])
        if average is not None:
            average.load_state_dict(state["average"])
        if len(state["random"]) == distributed.world_size():
            _set_random_state(state["random"][distributed.rank()])
        else:
            logger.warning("%s was written by %d ranks; random draws of the model differ", path, len(state["random"]))
    except Exception as error:
        raise UserError(
            f"{path} has the state of another model, optimiser, average or freeze_at: {reason(error)}"
        ) from error
    step, best = state["step"], state["best"]
    logger.info("resumed from %s after step %d", path, step)
    return step, best


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
