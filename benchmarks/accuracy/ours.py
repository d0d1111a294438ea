"""Our training, as `resnet-backbones train` does it."""

import json
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from resnet_backbones.cli import training
from resnet_backbones.training.curves import read_rows


def train(config: DictConfig) -> tuple[dict[str, float], float]:
    """Metrics in percent and seconds per iteration."""
    training.train(config, resume=False)
    folder = Path(config.output_dir)
    speeds = [row["images_per_second"] for row in read_rows(folder) if "loss" in row]
    for checkpoint in ("last.pt", "last-1.pt"):
        (folder / checkpoint).unlink(missing_ok=True)
    return json.loads((folder / "metrics.json").read_text()), float(
        np.mean(config.solver.batch_size / np.array(speeds))
    )
