"""How a run of train or pretrain starts, and the copy of its model that it evaluates."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from .. import distributed
from ..config import save_config
from ..errors import UserError
from ..models.fuse import fuse
from ..paths import output_folder
from ..training.logger import set_up_logging
from ..training.loop import memory_format, set_seed
from ..training.solver import scale_to_batch


def start(config: DictConfig, eval_only: bool) -> tuple[torch.device, Path, DictConfig]:
    """Join the other ranks, create the output folder with its log and complete config, and seed torch.

    Returns the device, the folder, and the config with lr and schedule scaled to the batch size. Raises `UserError` if
    there are no weights to evaluate or the folder cannot be written.
    """
    if eval_only and config.weights is None:
        raise UserError("--eval-only needs the weights to score: weights=FILE.")
    device, output_dir = distributed.init(), output_folder(config.output_dir)
    set_up_logging(output_dir / "log.txt")
    set_seed(config.seed, config.solver.deterministic)
    if distributed.is_main():
        save_config(config, output_dir / "config.yaml")
    return device, output_dir, scale_to_batch(config)


def for_inference(model: nn.Module, solver: DictConfig) -> nn.Module:
    """A fused copy of `model` in the memory format that the solver asks for."""
    fused = fuse(model)
    return fused.to(memory_format=memory_format(fused, solver))
