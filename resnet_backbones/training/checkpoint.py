"""The files that training leaves to go on from: `last.pt` and `best.pt`."""

import logging
import os
import shutil
import zipfile
from pathlib import Path

import torch
from torch import nn

from .. import distributed
from ..errors import UserError, reason
from ..weights import load_state_dict
from ..weights.torch_files import check_zip, read_torch
from .optimizer_state import LARGEST, checked_optimizer_state

logger = logging.getLogger(__name__)

# What a checkpoint to resume from holds.
STATE = {
    "model": dict, "optimizer": dict, "scaler": dict, "average": dict, "step": int, "best": float, "random": list,
}  # fmt: skip


def save_checkpoint(path: Path, content: dict, kept: int = 1) -> None:
    """Write `content` whole or not at all: under a temporary name, to the disk, and only then over the old file.

    With `kept` above 1 the old file becomes `NAME-1.pt`, that one `NAME-2.pt` and so on. The file is a zip with a
    checksum of every tensor, which `damage` checks. Raises `UserError` where there is no room, saying how much lacks.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        for k in range(kept - 1, 0, -1):
            newer = earlier(path, k - 1)
            if newer.exists():
                os.replace(newer, earlier(path, k))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        whole = "; the previous one is whole" if path.is_file() else ""
        raise UserError(f"Checkpoint {path} cannot be written: {error}{_room(path, content)}{whole}.") from error


def earlier(path: Path, k: int) -> Path:
    """The checkpoint `k` writes before `path`."""
    return path if k == 0 else path.with_name(f"{path.stem}-{k}{path.suffix}")


def newest_whole(path: Path) -> Path | None:
    """`path`, or where it is damaged or gone the newest earlier one that is whole; None where there is none at all.

    What is passed over goes into the log. Raises `UserError` where all are damaged.
    """
    existing = [earlier(path, k) for k in range(100) if earlier(path, k).exists()]
    faults = []
    for candidate in existing:
        fault = damage(candidate)
        if fault is None:
            return candidate
        faults.append(f"{candidate} is no checkpoint to resume from: {fault}")
        logger.warning("%s", faults[-1])
    if faults:
        raise UserError("; ".join(faults))
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a file that `save_checkpoint` wrote; None where every checksum is right."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return "it is no file"
        with zipfile.ZipFile(path) as archive:
            check_zip(archive)
            broken = archive.testzip()
    except Exception as error:  # whatever zipfile makes of damaged files
        return reason(error)
    return None if broken is None else f"{broken} in it does not have its checksum"


def _room(path: Path, content: dict) -> str:
    """How much more room a checkpoint needs than there is; nothing where that is not the trouble."""
    needed, free = _size(content), shutil.disk_usage(path.parent).free
    return f" (it takes about {needed >> 20} MiB, {free >> 20} MiB are free)" if needed > free else ""


def _size(value: object) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_size, values))


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
    architecture, and for one that asks for more than tensors and plain containers, which is not run.
    """
    state = _read_state(path)
    load_state_dict(model, state["model"], str(path))
    try:
        optimizer.load_state_dict(checked_optimizer_state(state["optimizer"], optimizer))
        if scaler.is_enabled() and state["scaler"]:  # empty where the run was without fp16 so far
            scaler.load_state_dict(_checked_scaler_state(state["scaler"], scaler))
        if average is not None:
            average.load_state_dict(state["average"])
        if len(state["random"]) == distributed.world_size():
            _set_random_state(state["random"][distributed.rank()])
        else:
            logger.warning(
                "%s was written by %d ranks and is gone on with by %d, from the same sample on; draws that are not "
                "made from a sample's seed (dropout, stochastic depth, mixing) will differ",
                *(path, len(state["random"]), distributed.world_size()),
            )
    except Exception as error:
        raise UserError(
            f"{path} has the state of another model, optimiser, average or freeze_at: {reason(error)}"
        ) from error
    step, best = state["step"], state["best"]
    logger.info("resumed from %s after step %d", path, step)
    return step, best


def _read_state(path: Path) -> dict:
    """The content of a checkpoint, each entry of its kind. Raises `UserError` naming the entries that are not."""
    try:
        state = read_torch(path)
    except Exception as error:  # whatever a damaged file makes zipfile, pickle or torch stumble over
        raise UserError(f"{path} is no checkpoint to resume from: {reason(error)}") from error
    missing = [key for key in STATE if not isinstance(state, dict) or not isinstance(state.get(key), STATE[key])]
    if missing:
        raise UserError(f"{path} is no checkpoint to resume from: it lacks {', '.join(missing)}.")
    named = all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in state["model"].items())
    counted = type(state["step"]) is int and 0 <= state["step"] < 2**53
    if not named or not counted:
        fault = "its step is no count" if named else "its model is no mapping of names to tensors"
        raise UserError(f"{path} is no checkpoint to resume from: {fault}.")
    return state


def _checked_scaler_state(given: dict, scaler) -> dict:
    """`given`. Raises `ValueError` where `scaler` could not have left it."""
    most = {int: 2**31, float: LARGEST}
    ours = {key: type(value) for key, value in scaler.state_dict().items()}
    same = {key: type(value) for key, value in given.items()} == ours
    if not same or not all(0 <= value < most[ours[key]] for key, value in given.items()):
        raise ValueError("its scaler of fp16 is none")
    return given


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
