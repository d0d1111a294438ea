"""The measured rows as a Markdown table, below the conditions of the measurement, and as JSON."""

import importlib.metadata
import os
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .settings import Settings
from .timing import BASES, Row

LIBRARIES = ("torch", "torchvision", "detectron2", "timm", "pycocotools", "hotcoco")


def conditions(version: str, command: str, settings: Settings) -> dict[str, str]:
    """Hardware, versions (ours is `version`), and command."""
    versions = {"resnet_backbones": version, "Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    hardware = f"{_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if settings.device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}, {hardware}"
    return {
        "hardware": hardware,
        "versions": ", ".join(f"{library} {version}" for library, version in versions.items()),
        "command": command,
        "precision": "fp32" if settings.amp == "none" else settings.amp,
    }


def header(conditions: dict[str, str], compiled: bool) -> str:
    """What comes above the rows."""
    bases = BASES if compiled else BASES[:1]
    cells = ["measured", "by", "seconds", "images/s", *(f"{base} / it" for base in bases), "tensors MiB"]
    cells += ["process MiB", "remark"]
    lines = [f"- {key}: {value}" for key, value in conditions.items()]
    lines += [
        "- seconds and ratios: medians over rounds, with their quartiles in brackets",
        "- tensors MiB: the most that tensors hold above what was there before, as the allocator records it; process "
        "MiB: the same of a process of its own, as the system does; ours / it in brackets",
    ]
    return "\n".join([*lines, "", _line(cells), _line(["---"] * len(cells))])


def lines(rows: list[Row], compiled: bool) -> list[str]:
    """The table's lines for a part."""
    ours = {row.measured: row for row in rows if row.contender == BASES[0]}
    return [_line(_cells(row, ours[row.measured], compiled)) for row in rows]


def _cells(row: Row, ours: Row, compiled: bool) -> list[str]:
    cells = [row.measured, row.contender]
    cells += [spread(row.seconds), f"{row.images / row.median:.4g}"] if row.seconds else ["–", "–"]
    for base in BASES if compiled else BASES[:1]:
        q1, median, q3 = row.ratios.get(base, [0, 0, 0])
        cells.append(f"{median:.2f} ({q1:.2f} to {q3:.2f})" if median and row.contender != base else "–")
    for key in ("peak_bytes", "process_bytes"):
        held, ours_held = getattr(row, key), getattr(ours, key)
        ratio = f" ({ours_held / held:.2f})" if held and ours_held and row is not ours else ""
        cells.append("–" if held is None else f"{held / 2**20:.1f}{ratio}")
    apart = ", ".join(f"{what} {value:.2g}" for what, value in row.differences.items())
    return [*cells, "; ".join(filter(None, [row.remark, f"apart from ours by {apart}" if apart else ""]))]


def as_json(conditions: dict[str, str], settings: Settings, rows: list[Row]) -> dict:
    return {
        "conditions": conditions,
        "settings": asdict(settings),
        "rows": [asdict(row) | {"median": row.median if row.seconds else None} for row in rows],
    }


def spread(seconds: list[float]) -> str:
    """Their median and quartiles; a wide range means that the machine was busy."""
    q1, median, q3 = np.percentile(seconds, [25, 50, 75])
    return f"{median:.4g} ({q1:.4g} to {q3:.4g})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _cpu() -> str:
    """Its model, where the system reports it."""
    path = Path("/proc/cpuinfo")
    for text in path.read_text().splitlines() if path.exists() else []:
        if text.startswith("model name"):
            return text.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
