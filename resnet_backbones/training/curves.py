"""Curves of a run, and of several side by side, as PNGs."""

import json
from pathlib import Path


def read_rows(output_dir: Path) -> list[dict]:
    """The rows of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def draw_curves(output_dir: Path, path: Path) -> None:
    """A run's training loss on the left; on the right its training error and the error of every evaluation."""
    figure, (left, right) = _axes("loss", "error (%)")
    rows = read_rows(output_dir)
    left.plot(*_column(rows, "loss"), label="training")
    _draw_errors(right, rows, "", "C0")
    for axis in (left, right):
        axis.legend()
    _save(figure, path)


def draw_comparison(runs: dict[str, Path], path: Path) -> None:
    """The errors of several runs by name, thin and dashed in training, bold in evaluation (arXiv 1512.03385, Figure 6).

    Nets without shortcuts ("plain" in their names) are drawn on the left, the others on the right.
    """
    plain = [name for name in runs if "plain" in name]
    groups = {"plain": plain, "residual": [name for name in runs if name not in plain]}
    groups = {title: names for title, names in groups.items() if names}
    figure, axes = _axes(*["error (%)"] * len(groups))
    for axis, (title, names) in zip(axes, groups.items(), strict=True):
        axis.set_title(title)
        for name in names:
            _draw_errors(axis, read_rows(runs[name]), f"{name} ", f"C{list(runs).index(name)}")
        axis.legend()
        if axis is not axes[0]:
            axis.sharey(axes[0])
    _save(figure, path)


def _draw_errors(axis, rows: list[dict], label: str, color: str) -> None:
    axis.plot(*_column(rows, "error"), color=color, linestyle="--", linewidth=0.8, label=f"{label}training")
    steps, top1 = _column(rows, "top1")
    axis.plot(steps, [100 - v for v in top1], color=color, linewidth=1.8, marker=".", label=f"{label}evaluation")


def _column(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _axes(*labels: str):
    from matplotlib.figure import Figure  # here, because it takes long to import

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, len(labels), squeeze=False)[0]
    for axis, label in zip(axes, labels, strict=True):
        axis.set_xlabel("iteration")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    return figure, axes


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
