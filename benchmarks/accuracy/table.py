"""Means over seeds, their intervals, and paired differences."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

METRICS = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")


def print_tables(output: Path, configs: Sequence[str], systems: Sequence[str], seeds: Sequence[int]) -> None:
    """A table per config; differences are from the first system."""
    for config in configs:
        results = {
            system: [json.loads((output / config / system / str(seed) / "result.json").read_text()) for seed in seeds]
            for system in systems
        }
        print(f"\n{config}, seeds {', '.join(map(str, seeds))}")
        for metric in METRICS:
            scores = {s: [run["metrics"].get(metric) for run in runs] for s, runs in results.items()}
            if None not in scores[systems[0]]:
                print_metric(metric, scores)
        for system, runs in results.items():
            print(f"  {system}: {np.mean([run['seconds_per_iteration'] for run in runs]):.2f} s per iteration")


def print_metric(metric: str, scores: dict[str, list[float]]) -> None:
    first = np.array(next(iter(scores.values())))
    print(f"  {metric}")
    for system, values in scores.items():
        listed = " ".join(f"{v:.2f}" for v in values)
        line = f"    {system:16} {with_interval(values)}  ({listed})"
        if system != next(iter(scores)):
            line += f"  difference {with_interval(np.array(values) - first)}"
        print(line)


def with_interval(values: Sequence[float]) -> str:
    """The mean, and for several values half its interval."""
    return f"{np.mean(values):6.2f}" + (f" ± {half_interval(values):.2f}" if len(values) > 1 else "")


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean of two or more values, by Student's t."""
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
