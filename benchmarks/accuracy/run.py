"""One training run by one system: python -m benchmarks.accuracy.run SYSTEM CONFIG FOLDER key=value …"""

import logging
import sys
from importlib import import_module
from pathlib import Path

import torch
import torchvision
from omegaconf import DictConfig

from resnet_backbones.cli.training import load_sets
from resnet_backbones.config import load_config
from resnet_backbones.detectors import build_detector
from resnet_backbones.errors import one_line_errors
from resnet_backbones.evaluation.report import write_json
from resnet_backbones.training.loop import set_seed


def main(system: str, name: str, folder: str, *overrides: str) -> None:
    with one_line_errors():
        config = load_config(name, [*overrides, f"output_dir={folder}/run"])
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        metrics, seconds = import_module(f"{__package__}.{system}").train(config)
        content = {
            "system": system,
            "config": name,
            "overrides": list(overrides),
            "metrics": metrics,
            "seconds_per_iteration": seconds,
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        }
        write_json(Path(folder, "result.json"), content)


def initial_weights(config: DictConfig) -> dict[str, torch.Tensor]:
    """The weights that our training with this config and seed starts from."""
    set_seed(config.seed, deterministic=False)
    return build_detector(config, len(load_sets(config, config.data.train)[0].classes)).state_dict()


if __name__ == "__main__":
    main(*sys.argv[1:])
