"""Metrics as a table to read and as a JSON file."""

import json
import re
from pathlib import Path

from ..paths import atomic_write

# Kind, metric and class in a name such as "top1", "bbox/AP" or "val/voc/AP50_area-a/b-c"; class names can be anything.
NAME = re.compile(r"(?:((?:.*?/)??(?:bbox|segm|voc))/)?(\w+)(?:-(.*))?", re.DOTALL)


def metrics_table(metrics: dict[str, float]) -> str:
    """One row for each kind of metric ("bbox", "segm", "voc"), then its per-class AP; -1 is shown as "-"."""
    tables: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, metric, class_name = NAME.fullmatch(name).groups()
        title = (kind or "") if class_name is None else f"{kind} {metric} by class"
        tables.setdefault(title, {})[metric if class_name is None else class_name] = value
    return "\n".join(line for title, cells in tables.items() for line in [*filter(None, [title]), *_columns(cells, 6)])


def _columns(values: dict[str, float], per_line: int) -> list[str]:
    cells = [f"{name} {value:.2f}" if value >= 0 else f"{name} -" for name, value in values.items()]
    width = max(len(cell) for cell in cells) + 2
    rows = [cells[i : i + per_line] for i in range(0, len(cells), per_line)]
    return ["  " + "".join(cell.ljust(width) for cell in row).rstrip() for row in rows]


def write_json(path: Path, content: object) -> None:
    """Replace the file at `path` as a whole; a dict is indented."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2 if isinstance(content, dict) else None) + "\n")
