"""What every backbone here is: a module from an image to a dict of features, which says what shapes they have."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..errors import UserError, unknown


class ShapeSpec(NamedTuple):
    """What heads need to know of a feature map (N, channels, H / stride, W / stride)."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """`forward(images (N, C, H, W)) -> {feature: (N, channels, H / stride, W / stride)}` over plain modules.

    Attributes:
        out_features: names of the features that `forward` returns, from the finest to the coarsest.
        shapes: the `ShapeSpec` of each feature that can be returned.
        stages: for "stem", "res2" … "res5" the names of their submodules, in the order of the forward pass.
    """

    out_features: list[str]
    shapes: dict[str, ShapeSpec]
    stages: Mapping[str, Sequence[str]]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: self.shapes[name] for name in self.out_features}

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: TorchScript cannot read `forward`, but it can what FX traces of it."""
        return torch.fx.symbolic_trace(self)


def check_out_features(out_features: Sequence[str], valid: Sequence[str]) -> list[str]:
    """The wanted features in the network's own order. Raises `UserError` for an unknown one or none."""
    for feature in out_features:
        if feature not in valid:
            raise UserError(unknown("feature", feature, valid))
    if not out_features:
        raise UserError(f"out_features is empty; choose from {', '.join(valid)}.")
    return [feature for feature in valid if feature in out_features]
