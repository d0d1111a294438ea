"""Any network of timm that gives features, under the contract of our ResNet. timm is optional and imported late."""

import difflib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...errors import UserError, reason
from ...optional import import_timm
from ..backbone import Backbone, ShapeSpec, check_out_features
from ..naming import hide_child
from .torchvision import STRIDES, check_norm, convert_norms

PREFIX = "timm:"


def timm_backbone(
    name: str,
    *,
    norm: str = "BN",
    in_channels: int = 3,
    out_features: Sequence[str] | Mapping[str, str] | None = None,
) -> "TimmBackbone":
    """The features of timm's network `name`, such as "timm:resnet50d", with random weights.

    A network that lacks a stride of 4 … 32 lacks its feature: a plain ViT of patch 16 has only res4.

    Raises `UserError` if timm is not installed, does not know the name or gives no features of the network at any of
    these strides, and for an unknown norm or feature.
    """
    timm, name = import_timm(), name.removeprefix(PREFIX)
    check_norm(norm)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "timm.list_models() lists all names."
        raise UserError(f"Unknown timm model {name!r}. {hint}")

    with torch.device("meta"):
        levels = create(timm, name).feature_info.info
    taps = {f: i for f, stride in STRIDES.items() for i, level in enumerate(levels) if level["reduction"] == stride}
    if not taps:
        strides = ", ".join(str(stride) for stride in sorted({level["reduction"] for level in levels}))
        raise UserError(f"timm's {name} has features of stride {strides} only; detectors need some of 4, 8, 16, 32.")
    out_features = check_out_features(list(taps) if out_features is None else out_features, list(taps))
    net = create(timm, name, in_chans=in_channels, out_indices=tuple(taps[f] for f in out_features))
    return TimmBackbone(name, net, taps, out_features, norm)


def create(timm, name: str, **options) -> nn.Module:
    """`timm.create_model(name, features_only=True)`, for images of any size if the network can take them."""
    for any_size in ({"strict_img_size": False}, {}):
        try:
            net = timm.create_model(name, pretrained=False, features_only=True, **any_size, **options)
            break
        except TypeError as error:
            if "strict_img_size" not in str(error):
                raise
        except (RuntimeError, AssertionError, AttributeError) as error:
            raise UserError(f"timm gives no features of {name}: {reason(error)}") from error
    for module in net.modules():
        if not getattr(module, "strict_img_size", True):
            module.dynamic_img_pad = True
    return net


class TimmBackbone(Backbone):
    """A `features_only` network of timm; its parameters keep the names timm gives them there, below `net`.

    `stages` goes by the order in which timm registers the modules, as timm's own feature extraction does. A network
    that has parameters outside its modules, such as the position embedding of a ViT, or taps that are not modules, such
    as HRNet's, has no such stages: freezing them raises `UserError`.
    """

    def __init__(
        self, name: str, net: nn.Module, taps: dict[str, int], out_features: dict[str, str], norm: str
    ) -> None:
        super().__init__()
        output_format = getattr(getattr(net, "output_fmt", None), "value", "NCHW")
        if output_format not in ("NCHW", "NHWC"):
            raise UserError(f"timm's {name} gives features as {output_format}, not as the maps that detectors need.")
        self.channels_last = output_format == "NHWC"
        self.out_features, self.taken = out_features, list(out_features)
        levels = net.feature_info.info
        self.shapes = {f: ShapeSpec(levels[taps[f]]["num_chs"], STRIDES[f]) for f in out_features}

        split_norm_acts(net)
        net = convert_norms(net, norm)
        last = taps[list(out_features)[-1]]
        modules = [find(net, level["module"]) for level in levels[: last + 1]]
        drop_behind(net, modules[-1])
        self.net = net
        self.stages = cut(self, name, modules, {f: i for f, i in taps.items() if i <= last})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.net(images)
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        features = dict(zip(self.taken, maps, strict=True))
        return {name: features[feature] for feature, name in self.out_features.items()}


def find(net: nn.Module, module: str) -> str | None:
    """The name in the `features_only` network of what timm's feature_info calls `module`, None if it is not a module.

    timm either wraps the network, as `model` or `body`, or takes its first level of containers apart: `stages_0`.
    """
    names = dict(net.named_modules())
    candidates = (module, module.replace(".", "_", 1), f"model.{module}", f"body.{module}")
    return next((name for name in candidates if name and name in names), None)


def drop_behind(net: nn.Module, tap: str | None) -> None:
    """Drop what follows the last tap in its `nn.Sequential`; timm keeps and runs it in some networks."""
    container, _, child = (tap or "").rpartition(".")
    sequence = net.get_submodule(container)
    if container and isinstance(sequence, nn.Sequential):
        children = [name for name, _ in sequence.named_children()]
        for later in children[children.index(child) + 1 :]:
            delattr(sequence, later)


def cut(backbone: nn.Module, name: str, modules: list[str | None], taps: dict[str, int]) -> dict[str, Sequence[str]]:
    """`stages` of `backbone`: the names of its modules by the tap that comes next.

    `modules` are the names in `backbone.net` of timm's feature levels, `taps` the indices of ours among them. The stem
    ends with the last level of stride below 4, or before the module of the first tap.
    """
    uncuttable = dict.fromkeys(("stem", *taps), Uncuttable(name))
    if None in modules[min(taps.values()) :]:
        return uncuttable
    modules = [module and f"net.{module}" for module in modules]
    parts = list(parts_around(backbone, [module for module in modules if module]))
    ends = [parts.index(modules[i]) + 1 for i in taps.values()]
    first = min(taps.values())
    stem = parts.index(modules[first - 1]) + 1 if first and modules[first - 1] else ends[0] - 1
    starts = [0, stem, *ends]
    stages = {s: parts[a:b] for s, a, b in zip(("stem", *taps), starts, [stem, *ends], strict=False)}
    covered = {p for names in stages.values() for n in names for p in backbone.get_submodule(n).parameters()}
    return stages if covered == set(backbone.parameters()) else uncuttable


def parts_around(module: nn.Module, taps: list[str], prefix: str = "") -> Iterator[str]:
    """The names of the largest parts of `module`, in order, that have no tap inside; a tap is a part."""
    for child_name, child in module.named_children():
        name = prefix + child_name
        if any(tap.startswith(f"{name}.") for tap in taps) and name not in taps:
            yield from parts_around(child, taps, f"{name}.")
        else:
            yield name


class Uncuttable(Sequence):
    """The modules of a stage in a network that is not divided into stages; accessing them raises `UserError`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, index):
        raise UserError(
            f"timm's {self.name} cannot be frozen by stages, since its parameters are not divided into stages; use "
            "freeze_at=0."
        )

    def __len__(self) -> int:
        return 1


class NormAct(nn.Module):
    """timm's `BatchNormAct2d` with norm and activation separate, so that freezing replaces only the norm.

    In the state_dict the norm's tensors keep their names, without `norm.` in front.
    """

    def __init__(self, fused: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(fused.num_features, fused.eps, fused.momentum, fused.affine)
        self.norm.load_state_dict(fused.state_dict(), strict=False)
        self.drop, self.act = fused.drop, fused.act
        hide_child(self, "norm")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.norm(x)))


def split_norm_acts(net: nn.Module) -> None:
    """Replace every `BatchNormAct2d` in `net`; as a subclass of `nn.BatchNorm2d` it would lose its activation."""
    from timm.layers import BatchNormAct2d

    for name, module in list(net.named_modules()):
        if isinstance(module, BatchNormAct2d):
            net.set_submodule(name, NormAct(module))
