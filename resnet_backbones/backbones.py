"""The family table: every backbone by name. A variant is one row; `NAME_fpn` comes with it."""

import fnmatch
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from .errors import UserError, unknown
from .models import stems, variants
from .models.attention import SqueezeExcitation
from .models.blocks import BasicBlock, Bottleneck
from .models.extractors import EXTRACTORS, timm_backbone
from .models.fpn import FPN
from .models.freezing import freeze_stages
from .models.layers import FrozenBatchNorm2d
from .models.preact import PreActBasicBlock, PreActBottleneck, PreActResNet
from .models.resnet import ResNet
from .registry import Registry
from .weights import load_weights

BACKBONES = Registry("backbone")

# Depths are Table 1 of arXiv 1512.03385, and of 1603.05027 for 200 layers.
BASIC = {
    "18": {"block": BasicBlock, "depths": (2, 2, 2, 2)},
    "34": {"block": BasicBlock, "depths": (3, 4, 6, 3)},
}
BOTTLENECK = {
    "50": {"block": Bottleneck, "depths": (3, 4, 6, 3)},
    "101": {"block": Bottleneck, "depths": (3, 4, 23, 3)},
    "152": {"block": Bottleneck, "depths": (3, 8, 36, 3)},
}
ALL = BASIC | BOTTLENECK
PREACT = {
    "18": {"net": PreActResNet, "block": PreActBasicBlock, "depths": (2, 2, 2, 2)},
    "34": {"net": PreActResNet, "block": PreActBasicBlock, "depths": (3, 4, 6, 3)},
    "50": {"net": PreActResNet, "block": PreActBottleneck, "depths": (3, 4, 6, 3)},
    "101": {"net": PreActResNet, "block": PreActBottleneck, "depths": (3, 4, 23, 3)},
    "152": {"net": PreActResNet, "block": PreActBottleneck, "depths": (3, 8, 36, 3)},
    "200": {"net": PreActResNet, "block": PreActBottleneck, "depths": (3, 24, 36, 3)},
}
SE = {"attention": SqueezeExcitation}
SENET154 = {"reduce_first": 2, "shortcut": "B3x3", "stem": functools.partial(stems.deep, width=64)}

RESNETS = {
    **{f"resnet{depth}": row for depth, row in ALL.items()},
    # Groups and width of ResNeXt (arXiv 1611.05431) and wide nets (1605.07146).
    "resnext50_32x4d": BOTTLENECK["50"] | {"groups": 32, "width_per_group": 4},
    "resnext101_32x8d": BOTTLENECK["101"] | {"groups": 32, "width_per_group": 8},
    "resnext101_64x4d": BOTTLENECK["101"] | {"groups": 64, "width_per_group": 4},
    "wide_resnet50_2": BOTTLENECK["50"] | {"width_per_group": 128},
    "wide_resnet101_2": BOTTLENECK["101"] | {"width_per_group": 128},
    # Pre-activation (arXiv 1603.05027).
    **{f"preact_resnet{depth}": row for depth, row in PREACT.items()},
    # Squeeze-and-excitation (arXiv 1709.01507).
    **{f"seresnet{depth}": row | SE for depth, row in ALL.items()},
    "seresnext50_32x4d": BOTTLENECK["50"] | {"groups": 32, "width_per_group": 4} | SE,
    "seresnext101_32x4d": BOTTLENECK["101"] | {"groups": 32, "width_per_group": 4} | SE,
    "senet154": BOTTLENECK["152"] | {"groups": 64, "width_per_group": 4} | SE | SENET154,
    # Deep stem, and for D average-pooled shortcuts (arXiv 1812.01187 §4).
    "resnet50c": BOTTLENECK["50"] | {"stem": stems.deep},
    **{f"resnet{depth}d": row | {"stem": stems.deep, "shortcut": "D"} for depth, row in ALL.items()},
    # The degradation experiment's nets without shortcuts (arXiv 1512.03385 §4.1).
    **{f"plain{depth}": row | {"shortcut": "none"} for depth, row in BASIC.items()},
}

# Nets for the 32x32 images of CIFAR (arXiv 1512.03385 §4.2): 6n + 2 layers of basic blocks, 9n + 2 of bottlenecks,
# in three stages of 16, 32 and 64 planes. ResNeXt-29 has 64 planes and more (arXiv 1611.05431 §5.3).
CIFAR = {"stem": stems.conv3x3, "width": 16}
PRE = {"net": PreActResNet}
CIFAR_RESNETS = {
    **{
        f"cifar_resnet{6 * n + 2}": {"block": BasicBlock, "depths": (n, n, n), "shortcut": "A"} | CIFAR
        for n in (3, 5, 7, 9, 18, 200)
    },
    **{
        f"cifar_plain{6 * n + 2}": {"block": BasicBlock, "depths": (n, n, n), "shortcut": "none"} | CIFAR
        for n in (3, 5, 7, 9, 18)
    },
    **{
        f"cifar_preact_resnet{6 * n + 2}": {"block": PreActBasicBlock, "depths": (n, n, n), "shortcut": "A"}
        | PRE
        | CIFAR
        for n in (3, 5, 7, 9, 18)
    },
    **{
        f"cifar_preact_resnet{9 * n + 2}": {"block": PreActBottleneck, "depths": (n, n, n)} | PRE | CIFAR
        for n in (18, 111)
    },
    "cifar_resnet29": {"block": Bottleneck, "depths": (3, 3, 3)} | CIFAR,
    "cifar_resnext29_8x64d": {
        "block": Bottleneck,
        "depths": (3, 3, 3),
        "groups": 8,
        "width_per_group": 64,
        "stem": functools.partial(stems.conv3x3, width=64),
    },
}


# Keyword arguments that make a row of the table, for your own rows; errors do not list them as options.
OF_A_ROW = {"net", "block", "depths", "stem", "width", "groups", "width_per_group", "reduce_first", "attention"}


class RandomFrozenWarning(UserWarning):
    """Frozen layers with random weights: they never learn, and their normalization never fits."""


@contextmanager
def allow_random_frozen() -> Iterator[None]:
    """Suppress `RandomFrozenWarning`: the weights are loaded later, or nothing is trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomFrozenWarning)
        yield


def residual(
    *,
    net: type[ResNet] = ResNet,
    block: type[nn.Module],
    depths: Sequence[int],
    output_stride: int = 32,
    dilate_first: bool = False,
    deform_on: Sequence[str] = (),
    deform_modulated: bool = True,
    drop_path: float = 0.0,
    zero_init_residual: bool = False,
    checkpoint_stages: Sequence[str] = (),
    **row,
) -> ResNet:
    """The network of a row of the table, changed by the functions of `models/variants.py`."""
    backbone = net(block, depths, **row)
    if output_stride != 32:
        variants.dilate(backbone, output_stride, dilate_first)
    if deform_on:
        variants.deform(backbone, deform_on, deform_modulated)
    if drop_path:
        variants.stochastic_depth(backbone, drop_path)
    if zero_init_residual:
        variants.zero_init_residual(backbone)
    if checkpoint_stages:
        variants.checkpoint_stages(backbone, checkpoint_stages)
    return backbone


def with_fpn(
    make_body: Callable[..., nn.Module],
    *,
    fpn_channels: int = 256,
    fpn_norm: str = "none",
    fpn_p6_input: str = "res5",
    out_features: Sequence[str] | Mapping[str, str] = ("p2", "p3", "p4", "p5", "p6"),
    **body_options,
) -> FPN:
    """The backbone that `make_body` builds, with an FPN on top."""
    return FPN(make_body(**body_options), fpn_channels, fpn_norm, out_features, fpn_p6_input)


def register_family(name: str, make_body: Callable[..., nn.Module]) -> None:
    """Register the backbone `name`, built by `make_body(norm=…, **options)`, and `NAME_fpn` over it."""
    BACKBONES.add(name, make_body)
    BACKBONES.add(f"{name}_fpn", functools.partial(with_fpn, make_body))


def build_backbone(
    name: str,
    *,
    norm: str = "BN",
    freeze_at: int = 0,
    weights: str | Path | None = None,
    **options,
) -> nn.Module:
    """Build a registered backbone.

    Args:
        name: a name of `list_backbones()`, or `timm:NAME` for a model of timm; either with `_fpn` for an FPN over it.
        norm: "BN", "FrozenBN", "SyncBN", "GN" or "none".
        freeze_at: 0 nothing, 1 the stem, 2 stem and res2, … 5 everything.
        weights: a checkpoint file or URL, `hf://OWNER/REPO`, `torchvision://resnet50/IMAGENET1K_V2` or
            `timm://resnet50.a1_in1k`; None for random weights.
        options: for every name `in_channels` and `out_features`, a list of features or a dict of features and the
            names to return them under; for `NAME_fpn` also `fpn_channels`, `fpn_norm` and `fpn_p6_input`; for the
            residual families `shortcut` (a key of `shortcuts.SHORTCUTS`), `stride_in_1x1` (bottlenecks),
            `output_stride` (8, 16: dilated res4, res5) and `dilate_first` (as in detectron2's DC5), `deform_on` (stages
            whose 3x3 is deformable) and `deform_modulated` (version 2, the default), `drop_path` (stochastic depth),
            `zero_init_residual`, and `checkpoint_stages` (less memory, more time).

    The backbone has its `architecture` and, if the weights state it, the `preprocessing` that they were trained with,
    which the detectors apply.

    Raises `UserError` for an unknown name or option, an impossible combination and weights that do not fit. Warns
    (`RandomFrozenWarning`) if something is frozen at random weights, which silently ruins training.
    """
    make = _maker(name)
    for option in options:
        if option not in (valid := _options_of(make)):
            raise UserError(unknown(f"option of {name}", option, valid - OF_A_ROW | {"norm", "freeze_at", "weights"}))
    backbone = make(norm=norm, **options)
    plain_options = {k: v for k, v in options.items() if not k.startswith("fpn_") and k != "out_features"}
    backbone.architecture = {"name": name.removesuffix("_fpn"), "options": {"norm": norm} | plain_options}
    backbone.preprocessing = None
    if weights is not None:
        load_weights(backbone, str(weights))
    freeze_stages(getattr(backbone, "body", backbone), freeze_at)
    if weights is None and _has_frozen(backbone):
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


def valid_options(name: str) -> set[str]:
    """The `options` that `build_backbone(name)` takes."""
    return _options_of(_maker(name)) - {"norm"}


def _maker(name: str) -> Callable[..., nn.Module]:
    if not name.startswith("timm:"):
        return BACKBONES.get(name)
    make_body = functools.partial(timm_backbone, name.removesuffix("_fpn"))
    return functools.partial(with_fpn, make_body) if name.endswith("_fpn") else make_body


def _options_of(make: Callable) -> set[str]:
    """The keyword arguments of `make` and of what it passes them on to."""
    partial = make if isinstance(make, functools.partial) else functools.partial(make)
    if partial.func is with_fpn:
        return _keywords(with_fpn) | _options_of(*partial.args)
    if partial.func is residual:
        return set().union(*map(_keywords, (residual, ResNet, *partial.keywords["block"].__mro__)))
    return set(inspect.signature(make).parameters)


def _has_frozen(module: nn.Module) -> bool:
    frozen_norm = any(isinstance(m, FrozenBatchNorm2d) for m in module.modules())
    return frozen_norm or not all(p.requires_grad for p in module.parameters())


def _keywords(function: Callable) -> set[str]:
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


for _name, _row in RESNETS.items():
    register_family(_name, functools.partial(residual, **_row))
for _name, _row in CIFAR_RESNETS.items():  # three stages of strides 1, 2 and 4: too few for a pyramid
    BACKBONES.add(_name, functools.partial(residual, **_row))
for _name, _make in EXTRACTORS.items():
    register_family(_name, _make)
