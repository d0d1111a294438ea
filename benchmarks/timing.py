"""Contenders timed in turns, and their ratios."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from .memory import tensor_peak

BASES = ("ours", "ours compiled")  # which the others are compared with


@dataclass
class Row:
    """The time and memory of one contender.

    `ratios` holds, for each of `BASES` that took part, the lower quartile, the median and the upper quartile over
    rounds of its seconds / this one's. Without `seconds`, the remark says why there are none.
    """

    measured: str
    contender: str
    seconds: list[float] = field(default_factory=list)  # of each round
    images: int = 0  # per round
    peak_bytes: int | None = None  # of tensors, above those there before
    process_bytes: int | None = None  # of a process of its own, above those there before
    ratios: dict[str, list[float]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)  # of its results from ours
    remark: str = ""

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def measure(
    measured: str,
    contenders: Mapping[str, Callable[[], object] | str],
    *,
    images: int,
    rounds: int,
    warmup: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """A row for each contender, a call that is timed or the reason why there is none.

    They are called in turns, `warmup` times untimed and then `rounds` times timed, each round beginning with another
    one. On a GPU, `clock` is read once all work has finished.
    """
    runs = {name: run for name, run in contenders.items() if callable(run)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(-warmup, rounds):
        names = list(runs)
        first = k % len(names)
        for name in names[first:] + names[:first]:
            spent = timed(runs[name], device, clock)
            if k >= 0:
                seconds[name].append(spent)
    return [
        Row(measured, name, seconds[name], images, ratios=ratios(seconds, name))
        if name in runs
        else Row(measured, name, remark=str(contenders[name]))
        for name in contenders
    ]


def timed(run: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """The seconds of a call."""
    wait(device)
    start = clock()
    run()
    wait(device)
    return clock() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(seconds: Mapping[str, list[float]], name: str) -> dict[str, list[float]]:
    bases = [base for base in BASES if base in seconds]
    return {base: np.percentile(np.divide(seconds[base], seconds[name]), [25, 50, 75]).tolist() for base in bases}


def add_peaks(rows: list[Row], contenders: Mapping[str, Callable[[], object] | str], device: torch.device) -> None:
    """Note each contender's peak memory, from one more call."""
    for row in rows:
        run = contenders[row.contender]
        if callable(run):
            row.peak_bytes = tensor_peak(run, device)
