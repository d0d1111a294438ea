"""Figures as a table for people and a JSON file for programs."""

import json
from pathlib import Path


def metrics_table(metrics: dict[str, float]) -> str:
    """One row for each kind of figure ("bbox", "segm", "voc"), then its per-class AP; -1 is shown as "-"."""
    kinds: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, _, figure = name.rpartition("/")
        kinds.setdefault(kind, {})[figure] = value
    lines = []
    for kind, figures in kinds.items():
        summary = {name: value for name, value in figures.items() if "-" not in name}
        classes = {name.partition("-")[2]: value for name, value in figures.items() if "-" in name}
        lines += [*([kind] if kind else []), *_columns(summary, 6)]
        if classes:
            lines += [f"{kind} {next(iter(set(figures) - set(summary))).partition('-')[0]} by class"]
            lines += _columns(classes, 6)
    return "\n".join(lines)


def _columns(figures: dict[str, float], per_line: int) -> list[str]:
    cells = [f"{name} {value:.2f}" if value >= 0 else f"{name} -" for name, value in figures.items()]
    width = max(len(cell) for cell in cells) + 2
    rows = [cells[i : i + per_line] for i in range(0, len(cells), per_line)]
    return ["  " + "".join(cell.ljust(width) for cell in row).rstrip() for row in rows]


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2 if isinstance(content, dict) else None) + "\n")
