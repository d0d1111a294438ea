"""An optimiser's state from a file, checked: `load_state_dict` takes any, and the next step stumbles over it."""

from typing import Any

import torch
from torch import Tensor

SETTINGS = ("lr", "weight_decay", "momentum", "nesterov", "max_lr_snapshot")  # which a config may change
LARGEST = 1e36  # of those and of factors; float32 ends at 3e38
# What an optimiser keeps of a parameter, and LAMB of a group.
KEPT = {"SGD": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Lamb": {"exp_avg", "exp_avg_sq"}}


def checked_optimizer_state(given: Any, optimizer: torch.optim.Optimizer) -> dict:
    """`given`, in memory of its own. Raises `ValueError` where `optimizer` could not have left it.

    Whatever else a file may hold that is not of the form of a state_dict raises what Python says of it.
    """
    groups = zip(given["param_groups"], optimizer.state_dict()["param_groups"], strict=True)
    if not all(_fits(theirs, ours) for theirs, ours in groups):
        raise ValueError("its optimiser is another one than solver.optimizer")
    shapes = dict(enumerate(p.shape for group in optimizer.param_groups for p in group["params"]))
    state = {}
    for k, kept in given["state"].items():
        if kept.keys() != KEPT[type(optimizer).__name__]:
            raise ValueError(f"its optimiser keeps {', '.join(map(str, kept))[:80]} of a parameter")
        for name, value in kept.items():
            if not (_is_count(value) if name == "step" else _is_float(value) and value.shape == shapes[k]):
                raise ValueError(f"its optimiser's {name} of parameter {k} is of no use")
        state[k] = {name: value.clone() for name, value in kept.items()}
    return {"state": state, "param_groups": given["param_groups"]}


def _fits(theirs: dict, ours: dict) -> bool:
    """Whether a parameter group is one of ours, but for what a config may have changed."""
    theirs = dict(theirs)
    counted = _is_count(theirs.pop("step", torch.tensor(0.0)))  # LAMB's from its first step on
    return counted and theirs.keys() == ours.keys() and all(
        type(theirs[name]) is type(value)
        and (0 <= theirs[name] < LARGEST if name in SETTINGS else theirs[name] == value)
        for name, value in ours.items()
    )  # fmt: skip


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_count(value: Any) -> bool:
    return _is_float(value) and value.ndim == 0 and 0 <= float(value) < 2**53
