"""How strongly each layer responds: standard deviations after the norm (arXiv 1512.03385 §4.2, Figure 7)."""

import itertools
import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..models.layers import FrozenBatchNorm2d
from .blocks import LAYERS, find_body

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)


class Moments:
    """Of all values added: their standard deviation."""

    def __init__(self) -> None:
        self.sum = self.squares = self.count = 0

    def add(self, x: Tensor) -> None:
        x = x.double()
        self.sum, self.squares, self.count = self.sum + x.sum(), self.squares + x.square().sum(), self.count + x.numel()

    def std(self) -> float:
        mean = self.sum / self.count
        return math.sqrt(max(0.0, float(self.squares / self.count - mean * mean)))


@torch.no_grad()
def layer_responses(
    model: nn.Module, batches: Iterable[tuple], run: Callable[[nn.Module, tuple], object]
) -> dict[str, float]:
    """The standard deviation of each layer's response over all images, channels and positions, by the layer's name.

    Layers are the convolutions and linear layers of the backbone in the order of the forward pass, without those on
    shortcuts ("downsample"). A response is the layer's output or, where a norm takes it, that of the norm; so it is
    after BN and before ReLU and addition. With pre-activation it is so, too, but for the last layer of a block, whose
    output is added as it is. `run(model, batch)` calls the model, which should be in evaluation mode.
    """
    batches = iter(batches)
    first = next(batches)
    moments = {name: (module, Moments()) for name, module in responding(model, lambda: run(model, first)).items()}
    with ExitStack() as stack:
        for module, total in moments.values():
            hook = module.register_forward_hook(lambda _, inputs, output, total=total: total.add(output))
            stack.callback(hook.remove)
        for batch in itertools.chain([first], batches):
            run(model, batch)
    return {name: total.std() for name, (_, total) in moments.items()}


def responding(model: nn.Module, run: Callable[[], object]) -> dict[str, nn.Module]:
    """For each layer that `run()` calls, the module whose output is its response: itself, or the norm that takes it."""
    _, body = find_body(model)
    found: dict[str, nn.Module] = {}
    latest: dict[str, object] = {}

    def of_layer(name: str) -> Callable:
        def record(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            found[name] = module
            latest.update(name=name, output=output, version=output._version)

        return record

    def of_norm(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        # An addition in place, as at the end of a block, makes another value of the same tensor.
        if inputs[0] is latest.get("output") and inputs[0]._version == latest["version"]:
            found[latest["name"]] = module

    with ExitStack() as stack:
        for name, module in body.named_modules():
            if isinstance(module, LAYERS) and "downsample" not in name.split("."):
                stack.callback(module.register_forward_hook(of_layer(name)).remove)
            elif isinstance(module, NORMS):
                stack.callback(module.register_forward_hook(of_norm).remove)
        run()
    return found
