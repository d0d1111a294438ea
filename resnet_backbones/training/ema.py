"""An exponential moving average of a model's weights and statistics, which often scores better than the last step's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage:
    """average = decay · average + (1 - decay) · model, every `period` steps, in torch's `AveragedModel`."""

    def __init__(self, model: nn.Module, decay: float, period: int) -> None:
        self.model, self.period = model, period
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def state_dict(self) -> dict:
        return self.average.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.average.load_state_dict(state)

    def update(self, step: int) -> None:
        """Call after `step` finished steps."""
        if step % self.period == 0:
            self.average.update_parameters(self.model)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights, for evaluation and saving; its own are restored afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self) -> None:
        """Leave the averaged weights in the model for good."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for ours, averaged in zip(tensors(self.model), tensors(self.average.module), strict=True):
            kept = ours.clone()
            ours.copy_(averaged)
            averaged.copy_(kept)


def tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
