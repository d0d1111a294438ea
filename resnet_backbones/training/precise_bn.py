"""Precise BN (arXiv 2105.07576 §3): BN's running statistics recomputed, as true means over many batches."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from .. import distributed
from .loop import to_device


class _BatchModel(nn.Module):
    """`model(images, targets)` as a function of the pair, which is what fvcore calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: tuple) -> object:
        return self.model(*batch)


@torch.no_grad()
def update_precise_bn(model: nn.Module, batches: Iterable[tuple], count: int) -> None:
    """Replace the statistics of every BN in `model` by their means over `count` training batches of every rank."""
    from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats  # here, because it takes long to import

    device = next(model.parameters()).device
    training = model.training
    model.train()
    norms = get_bn_modules(model)
    update_bn_stats(_BatchModel(model).train(), _on_device(itertools.islice(batches, count), device), count)
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            statistic.copy_(distributed.total(statistic.cpu()) / distributed.world_size())
    model.train(training)


def _on_device(batches: Iterable[tuple], device: torch.device) -> Iterator[tuple]:
    return (tuple(to_device(part, device) for part in batch) for batch in batches)
