"""How the training tools begin: their arguments, and a run's device, folder, log, seed and config."""

import argparse
from pathlib import Path

import torch
from omegaconf import DictConfig

from . import distributed
from .config import save_config
from .errors import UserError
from .journal import set_up_logging
from .paths import output_folder
from .training import set_seed


def parse_arguments(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """`config`, `eval_only`, `resume` and `overrides` of a command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--eval-only", action="store_true", help="score weights=FILE without training")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt in output_dir")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, such as solver.lr=0.01")
    return parser.parse_intermixed_args(argv)


def start(config: DictConfig, eval_only: bool) -> tuple[torch.device, Path]:
    """Join the other ranks, make the output folder with its log and complete config, and seed torch.

    Raises `UserError` where there is nothing to evaluate or the folder cannot be written.
    """
    if eval_only and config.weights is None:
        raise UserError("--eval-only needs the weights to score: weights=FILE.")
    device, output_dir = distributed.init(), output_folder(config.output_dir)
    set_up_logging(output_dir / "log.txt")
    set_seed(config.seed, config.solver.deterministic)
    if distributed.is_main():
        save_config(config, output_dir / "config.yaml")
    return device, output_dir
