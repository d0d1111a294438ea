"""How strongly each layer responds: standard deviations after the norm (arXiv 1512.03385 §4.2, Figure 7)."""

import itertools
import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UserError
from ..models.layers import FrozenBatchNorm2d
from .blocks import LAYERS, find_blocks, find_body

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)


class Moments:
    """The standard deviation of all values added."""

    def __init__(self) -> None:
        self.sum = self.squares = self.count = 0

    def add(self, x: Tensor) -> None:
        x = x.double()
        self.sum, self.squares, self.count = self.sum + x.sum(), self.squares + x.square().sum(), self.count + x.numel()

    def std(self) -> float:
        """Raises `UserError` if a value was infinite or NaN."""
        mean = float(self.sum) / self.count
        variance = float(self.squares) / self.count - mean * mean
        if not math.isfinite(variance):
            raise UserError("The responses of a layer are not finite.")
        return math.sqrt(max(0.0, variance))


@torch.no_grad()
def layer_responses(
    model: nn.Module, batches: Iterable[tuple], run: Callable[[nn.Module, tuple], object]
) -> dict[str, float]:
    """The standard deviation of each layer's response over all images, channels and positions, by the layer's name.

    Layers are the convolutions and linear layers that the backbone calls, in forward order, except those on shortcuts.
    A response is the layer's output or, if a norm follows, that of the norm: after BN, before ReLU and addition. The
    same holds with pre-activation, except for the last layer of a block, whose output is added as is. `run(model,
    batch)` calls the model, which should be in evaluation mode.
    """
    batches = iter(batches)
    first = next(batches)
    moments = {name: (module, Moments()) for name, module in responding(model, lambda: run(model, first)).items()}
    with ExitStack() as stack:
        for module, total in moments.values():
            stack.callback(hook_response(module, total.add).remove)
        for batch in itertools.chain([first], batches):
            run(model, batch)
    return {name: total.std() for name, (_, total) in moments.items()}


def hook_response(module: nn.Module, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `take` with the output of `module`; for timm's norms that include an activation, with the input of that."""
    if isinstance(module, NORMS) and isinstance(getattr(module, "act", None), nn.Module):
        return module.act.register_forward_pre_hook(lambda _, inputs: take(inputs[0]))
    return module.register_forward_hook(lambda _, inputs, output: take(output))


def responding(model: nn.Module, run: Callable[[], object]) -> dict[str, nn.Module]:
    """For each layer that `run()` calls, the module whose output is its response: itself, or the norm behind it."""
    _, body = find_body(model)
    on_shortcuts = shortcut_names(model)
    found: dict[str, nn.Module] = {}
    latest: dict[str, object] = {}
    found_layers: set[str] = set()  # their parts, such as the offsets of a deformable convolution, are not layers

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
            if name.startswith(on_shortcuts) or name.rpartition(".")[0] in found_layers:
                continue
            if isinstance(module, LAYERS):
                found_layers.add(name)
                stack.callback(module.register_forward_hook(of_layer(name)).remove)
            elif isinstance(module, NORMS):
                stack.callback(module.register_forward_hook(of_norm).remove)
        run()
    return found


def shortcut_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the projections in the backbone's blocks, as in this package, torchvision and timm."""
    prefix, _ = find_body(model)
    try:
        blocks = find_blocks(model)
    except UserError:  # it has none
        return ()
    names = [block.name.removeprefix(prefix).removeprefix(".") for block in blocks]
    return tuple(f"{name}.{child}" for name in names for child in ("downsample", "proj"))
