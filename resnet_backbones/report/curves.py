"""The curves of a run: losses, learning rate, metrics and speed over its steps."""

import math
import re
from collections.abc import Sequence

POINTS = 500  # of a curve
GROUPS = {
    "losses": r"loss.*",
    "learning rate": r"lr",
    "metrics in percent": r"(.+/)?(AP|AP50|AP75|top1|top5|error)",
    "images per second": r"images_per_second",
    "share of time waiting for data": r"data_wait",
}


def curves(rows: Sequence[dict]) -> list[dict]:
    """The title and the series of each group of metrics that occurs in `rows`, those of `metrics.jsonl`.

    A series has `name`, `steps` and `values`, None where a value is not finite; long ones are thinned out.
    """
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    found = []
    for title, pattern in GROUPS.items():
        series = [_series(rows, name) for name in names if re.fullmatch(pattern, name)]
        if series:
            found.append({"title": title, "series": series})
    return found


def _series(rows: Sequence[dict], name: str) -> dict:
    points = [(row["step"], row[name]) for row in rows if name in row]
    every = -(-len(points) // POINTS)
    points = points[:-1][::every] + points[-1:]
    values = [float(f"{value:.6g}") if math.isfinite(value) else None for _, value in points]
    return {"name": name, "steps": [step for step, _ in points], "values": values}
