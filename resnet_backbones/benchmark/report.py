"""The measured rows as a Markdown table, under what they were measured on, and as JSON."""

import importlib.metadata
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from .settings import Settings
from .timing import BASES, Row

LIBRARIES = ("torch", "torchvision", "detectron2", "timm", "pycocotools", "faster-coco-eval")


def conditions(version: str, command: str, settings: Settings) -> dict[str, str]:
    """Hardware, versions, ours being `version`, and command."""
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
    """What stands above the rows."""
    bases = BASES if compiled else BASES[:1]
    cells = ["measured", "by", "seconds", "images/s", *(f"{base} / it" for base in bases), "tensors MiB"]
    cells += ["process MiB", "remark"]
    lines = [f"- {key}: {value}" for key, value in conditions.items()]
    lines += ["- seconds are medians; ratios are medians over rounds, with their quartiles in brackets"]
    lines += ["- tensors MiB: the allocator's peak; process MiB: the peak of a process of its own; above those before"]
    return "\n".join([*lines, "", _line(cells), _line(["---"] * len(cells))])


def line(row: Row, compiled: bool) -> str:
    """A row of the table."""
    bases = BASES if compiled else BASES[:1]
    cells = [row.measured, row.contender]
    cells += [f"{row.median:.4g}", f"{row.images / row.median:.4g}"] if row.seconds else ["–", "–"]
    cells += [_ratio(row.ratios.get(base)) if row.contender != base else "1" for base in bases]
    cells += [f"{v / 2**20:.0f}" if v is not None else "–" for v in (row.peak_bytes, row.process_bytes)]
    apart = ", ".join(f"{what} {value:.1g}" for what, value in row.differences.items())
    remarks = [row.remark, f"apart from ours by {apart}" if apart else ""]
    return _line([*cells, "; ".join(filter(None, remarks))])


def as_json(conditions: dict[str, str], settings: Settings, rows: list[Row]) -> dict:
    return {
        "conditions": conditions,
        "settings": asdict(settings),
        "rows": [asdict(row) | {"median": row.median if row.seconds else None} for row in rows],
    }


def _ratio(quartiles: list[float] | None) -> str:
    return "–" if quartiles is None else f"{quartiles[1]:.2f} ({quartiles[0]:.2f} to {quartiles[2]:.2f})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _cpu() -> str:
    """Its model, where the system tells."""
    path = Path("/proc/cpuinfo")
    for text in path.read_text().splitlines() if path.exists() else []:
        if text.startswith("model name"):
            return text.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
