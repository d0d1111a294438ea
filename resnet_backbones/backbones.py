"""The family table: every backbone by name. A variant is one row; `NAME_fpn` follows by itself."""

import fnmatch
import functools
import warnings
from collections.abc import Callable, Sequence

from torch import nn

from .blocks import BasicBlock, Bottleneck
from .fpn import FPN
from .registry import Registry
from .resnet import ResNet
from .weights import load_weights

BACKBONES = Registry("backbone")

# Depths are Table 1 of arXiv 1512.03385; groups x width those of ResNeXt (1611.05431) and wide nets (1605.07146).
RESNETS = {
    "resnet18": {"block": BasicBlock, "depths": (2, 2, 2, 2)},
    "resnet34": {"block": BasicBlock, "depths": (3, 4, 6, 3)},
    "resnet50": {"block": Bottleneck, "depths": (3, 4, 6, 3)},
    "resnet101": {"block": Bottleneck, "depths": (3, 4, 23, 3)},
    "resnet152": {"block": Bottleneck, "depths": (3, 8, 36, 3)},
    "resnext50_32x4d": {"block": Bottleneck, "depths": (3, 4, 6, 3), "groups": 32, "width_per_group": 4},
    "resnext101_32x8d": {"block": Bottleneck, "depths": (3, 4, 23, 3), "groups": 32, "width_per_group": 8},
    "resnext101_64x4d": {"block": Bottleneck, "depths": (3, 4, 23, 3), "groups": 64, "width_per_group": 4},
    "wide_resnet50_2": {"block": Bottleneck, "depths": (3, 4, 6, 3), "width_per_group": 128},
    "wide_resnet101_2": {"block": Bottleneck, "depths": (3, 4, 23, 3), "width_per_group": 128},
}


class RandomFrozenWarning(UserWarning):
    """Frozen layers with random weights: they never learn, and their normalisation never fits."""


def register_family(name: str, make_body: Callable[..., nn.Module]) -> None:
    """Register the backbone `name`, built by `make_body(**options)`, and `NAME_fpn` over it."""

    def with_fpn(
        fpn_channels: int = 256,
        fpn_norm: str = "none",
        out_features: Sequence[str] = ("p2", "p3", "p4", "p5", "p6"),
        **options,
    ) -> FPN:
        return FPN(make_body(**options), fpn_channels, fpn_norm, out_features)

    BACKBONES.add(name, make_body)
    BACKBONES.add(f"{name}_fpn", with_fpn)


def build_backbone(
    name: str,
    *,
    norm: str = "BN",
    freeze_at: int = 0,
    weights: str | None = None,
    **options,
) -> nn.Module:
    """Build a registered backbone.

    Args:
        name: a name of `list_backbones()`.
        norm: "BN", "FrozenBN", "SyncBN", "GN" or "none".
        freeze_at: 0 nothing, 1 the stem, 2 stem and res2, … 5 everything.
        weights: a checkpoint file or URL, or `torchvision://resnet50/IMAGENET1K_V2`; None leaves random weights.
        options: `in_channels` and `out_features`; for `NAME_fpn` also `fpn_channels` and `fpn_norm`.

    Raises `UserError` for an unknown name or option value and for weights that do not fit. Warns
    (`RandomFrozenWarning`) where something is frozen at random weights: it silently ruins training.
    """
    backbone = BACKBONES.get(name)(norm=norm, freeze_at=freeze_at, **options)
    if weights is not None:
        load_weights(backbone, weights)
    elif norm == "FrozenBN" or freeze_at > 0:
        warnings.warn(
            f"{name} is built with norm={norm!r} and freeze_at={freeze_at} but random weights: what is frozen never "
            "learns. Give weights=…, or use norm='BN' and freeze_at=0.",
            RandomFrozenWarning,
            stacklevel=2,
        )
    return backbone


def list_backbones(pattern: str = "*") -> list[str]:
    """The registered names that match a shell-style pattern such as "resnext*", sorted."""
    return sorted(fnmatch.filter(dict(BACKBONES), pattern))


for _name, _row in RESNETS.items():
    register_family(_name, functools.partial(ResNet, **_row))
