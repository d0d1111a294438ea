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
        out_features: the features that `forward` returns, from the finest to the coarsest, each with the name that it
            is returned under, which is its own unless a host asks for another. It may be changed later.
        shapes: the `ShapeSpec` of each feature that can be returned.
        stages: for "stem", "res2" … "res5" the names of their submodules, in the order of the forward pass.
    """

    out_features: dict[str, str]
    shapes: dict[str, ShapeSpec]
    stages: Mapping[str, Sequence[str]]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: self.shapes[feature] for feature, name in self.out_features.items()}

    @property
    def out_channels(self) -> int:
        """Channels of the coarsest feature; of an FPN, those of every level. torchvision's detectors ask for it."""
        return list(self.output_shape().values())[-1].channels

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: TorchScript cannot read `forward`, but it can read an FX trace of it."""
        return torch.fx.symbolic_trace(self)


def check_out_features(out_features: Sequence[str] | Mapping[str, str], valid: Sequence[str]) -> dict[str, str]:
    """The wanted features in the network's own order, each with the name that it is returned under.

    Raises `UserError` for an unknown feature, for none, and for a name that two of them share.
    """
    names = out_features if isinstance(out_features, Mapping) else {feature: feature for feature in out_features}
    for feature in out_features:
        if feature not in valid:
            raise UserError(unknown("feature", feature, valid))
    if not out_features:
        raise UserError(f"out_features is empty; choose from {', '.join(valid)}.")
    if len(set(names.values())) < len(names):
        raise UserError(f"out_features is {dict(names)}; each feature needs a name of its own.")
    return {feature: names[feature] for feature in valid if feature in names}
