"""How a run of train or pretrain starts, and the copy of its model that it evaluates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from .. import distributed
from ..backbones import allow_random_frozen
from ..config import save_config
from ..models.fuse import fuse
from ..paths import local_file, output_folder
from ..training.logger import log_to, set_up_logging
from ..training.loop import memory_format, set_seed
from ..training.solver import scale_to_batch


@contextmanager
def trial() -> Iterator[None]:
    """Models built here take no memory and almost no time: they only show that they can be built."""
    with torch.device("meta"), allow_random_frozen():
        yield


def check_weights(config: DictConfig, others: Sequence[str] = ()) -> None:
    """Raise `UserError` if a weights file that the run starts from, or one of `others`, does not exist."""
    first = config.backbone.weights if config.weights is None else config.weights
    for source in (first, *others):
        if source is not None and "://" not in source:
            local_file(source, "weights file")


def start(config: DictConfig) -> tuple[torch.device, DictConfig]:
    """Join the other ranks, log to stdout, and seed torch.

    Returns the device, and the config with lr and schedule scaled to the batch size.
    """
    device = distributed.init()
    set_up_logging()
    set_seed(config.seed, config.solver.deterministic)
    return device, scale_to_batch(config)


def open_output(config: DictConfig) -> Path:
    """The output folder, with the log and the complete config; `config` is the one given to `start`.

    Called once data and model are ready, so that a run that fails earlier leaves no trace. Raises `UserError` if the
    folder cannot be written.
    """
    output_dir = output_folder(config.output_dir)
    log_to(output_dir / "log.txt")
    if distributed.is_main():
        save_config(config, output_dir / "config.yaml")
    return output_dir


def for_inference(model: nn.Module, solver: DictConfig) -> nn.Module:
    """A fused copy of `model` in the memory format that the solver asks for."""
    fused = fuse(model)
    return fused.to(memory_format=memory_format(fused, solver))
