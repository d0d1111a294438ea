"""Other families, their features taken from torchvision's own networks under the contract of our ResNet."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torchvision import models
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.vgg import cfgs, make_layers

from ...errors import UserError, unknown
from ..backbone import Backbone, ShapeSpec, check_out_features
from ..layers import NORMS, FrozenBatchNorm2d, init_weights

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class Extractor(Backbone):
    """The features of a network that is a chain of modules.

    Args:
        net: the network whose modules are taken; those past the last wanted feature are dropped.
        stages: for "stem", "res2" … "res5" the names of their modules in `net`, in the order of the forward pass.
        channels: of res2 … res5.
        tail: prefixes, in the state_dict of `net`, of the names of what follows res5.
        channels_last: whether the modules of `net` pass on (N, H, W, C).
        norm: "BN" keeps the norms of `net`, "FrozenBN" or "SyncBN" replace its batch norms.
        in_channels: channels of the image; other than 3 replaces the first convolution.
        out_features: which of "res2" … "res5" `forward` returns, or a dict of these and the names to return them under.

    Input (N, in_channels, H, W), output {"res2": (N, C2, H/4, W/4), … "res5": (N, C5, H/32, W/32)}. The parameters keep
    their names. Raises `UserError` for an unknown norm or feature.

    The networks round odd sizes in different ways: EfficientNet, RegNet and ZFNet up; VGG and ConvNeXt down; Swin down
    to res2 and up from there; DenseNet up to res2 and down from there; GoogLeNet both. AlexNet does not pad
    its pools, so its maps are a pixel or two short of H/stride. The smallest side that still reaches res5 is 63 for
    AlexNet, 32 for VGG and ConvNeXt, 29 for DenseNet, 15 for GoogLeNet, 4 for Swin and 1 for the others.
    """

    def __init__(
        self,
        net: nn.Module,
        stages: Mapping[str, Sequence[str]],
        channels: Sequence[int],
        *,
        tail: Sequence[str] = (),
        channels_last: bool = False,
        norm: str = "BN",
        in_channels: int = 3,
        out_features: Sequence[str] | Mapping[str, str] = tuple(STRIDES),
    ) -> None:
        super().__init__()
        check_norm(norm)
        self.out_features = check_out_features(out_features, tuple(STRIDES))
        built = list(stages)[: list(stages).index(list(self.out_features)[-1]) + 1]
        self.stages = {stage: list(stages[stage]) for stage in built}
        self.tail, self.channels_last = tuple(tail), channels_last
        self.shapes = {f: ShapeSpec(c, s) for (f, s), c in zip(STRIDES.items(), channels, strict=True)}

        keep_only(net, [name for names in self.stages.values() for name in names])
        if in_channels != 3:
            replace_first_conv(net, in_channels)
        for name, child in convert_norms(net, norm).named_children():
            self.add_module(name, child)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, features = images, {}
        for stage, names in self.stages.items():
            for name in names:
                x = self.get_submodule(name)(x)
            if stage in self.out_features:
                features[self.out_features[stage]] = x.permute(0, 3, 1, 2) if self.channels_last else x
        return features


def check_norm(norm: str) -> None:
    """Raise `UserError` unless `norm` can stand in for the norms of a published network."""
    if norm not in NORMS:
        raise UserError(unknown("norm", norm, NORMS))
    if norm not in ("BN", "FrozenBN", "SyncBN"):
        raise UserError(
            f"norm is {norm!r}, but networks taken from torchvision or timm come with their own norms; "
            "choose BN (keeps them), FrozenBN or SyncBN (replace their batch norms)."
        )


def convert_norms(net: nn.Module, norm: str) -> nn.Module:
    """`net` with its batch norms as `norm` says: "BN" leaves them, "FrozenBN" and "SyncBN" convert them."""
    if norm == "FrozenBN":
        return FrozenBatchNorm2d.convert(net)
    return nn.SyncBatchNorm.convert_sync_batchnorm(net) if norm == "SyncBN" else net


def keep_only(net: nn.Module, names: Sequence[str]) -> None:
    """Drop all submodules of `net` but those of the dotted `names`."""
    for name, child in list(net.named_children()):
        inner = [kept.removeprefix(f"{name}.") for kept in names if kept.startswith(f"{name}.")]
        if inner:
            keep_only(child, inner)
        elif name not in names:
            delattr(net, name)


def replace_first_conv(net: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one of `in_channels`, with random weights."""
    name, old = next((name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d))
    bias = old.bias is not None
    conv = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, bias=bias)
    init_weights(conv)
    net.set_submodule(name, conv.to(old.weight.device))


class Layout(NamedTuple):
    """Where in a torchvision network its stages are; the fields are those of `Extractor`."""

    stages: dict[str, list[str]]
    tail: tuple[str, ...] = ("classifier.",)
    channels_last: bool = False


def cut(*ends: int, **options) -> Layout:
    """The layout of a network whose `features` are one sequence: each stage ends before the index given for it."""
    starts = (0, *ends[:-1])
    stages = [[f"features.{i}" for i in range(start, end)] for start, end in zip(starts, ends, strict=True)]
    return Layout(dict(zip(["stem", *STRIDES], stages, strict=True)), **options)


GOOGLENET = Layout(
    {
        "stem": ["conv1", "maxpool1"],
        "res2": ["conv2", "conv3"],
        "res3": ["maxpool2", "inception3a", "inception3b"],
        "res4": ["maxpool3", *(f"inception4{block}" for block in "abcde")],
        "res5": ["maxpool4", "inception5a", "inception5b"],
    },
    tail=("aux1.", "aux2.", "fc."),
)
DENSENET = Layout(
    {
        "stem": [f"features.{name}" for name in ("conv0", "norm0", "relu0", "pool0")],
        "res2": ["features.denseblock1"],
        "res3": ["features.transition1", "features.denseblock2"],
        "res4": ["features.transition2", "features.denseblock3"],
        "res5": [f"features.{name}" for name in ("transition3", "denseblock4", "norm5", "relu5")],
    }
)
REGNET = Layout({"stem": ["stem"], **{f"res{i + 1}": [f"trunk_output.block{i}"] for i in range(1, 5)}}, tail=("fc.",))
EFFICIENTNET = cut(2, 3, 4, 6, 8, tail=("classifier.", "features.8."))
CONVNEXT = cut(1, 2, 4, 6, 8)
SWIN = cut(1, 2, 4, 6, 8, tail=("norm.", "head."), channels_last=True)

# name: layout, channels of res2 … res5. VGG's and AlexNet's res5 is their last pool.
TABLE = {
    "alexnet": (cut(1, 2, 5, 12, 13), (64, 192, 256, 256)),
    "vgg11": (cut(6, 10, 15, 20, 21), (256, 512, 512, 512)),
    "vgg13": (cut(10, 14, 19, 24, 25), (256, 512, 512, 512)),
    "vgg16": (cut(10, 16, 23, 30, 31), (256, 512, 512, 512)),
    "vgg19": (cut(10, 18, 27, 36, 37), (256, 512, 512, 512)),
    "vgg11_bn": (cut(8, 14, 21, 28, 29), (256, 512, 512, 512)),
    "vgg13_bn": (cut(14, 20, 27, 34, 35), (256, 512, 512, 512)),
    "vgg16_bn": (cut(14, 23, 33, 43, 44), (256, 512, 512, 512)),
    "vgg19_bn": (cut(14, 26, 39, 52, 53), (256, 512, 512, 512)),
    "googlenet": (GOOGLENET, (192, 480, 832, 1024)),
    "densenet121": (DENSENET, (256, 512, 1024, 1024)),
    "densenet161": (DENSENET, (384, 768, 2112, 2208)),
    "densenet169": (DENSENET, (256, 512, 1280, 1664)),
    "densenet201": (DENSENET, (256, 512, 1792, 1920)),
    "efficientnet_b0": (EFFICIENTNET, (24, 40, 112, 320)),
    "efficientnet_b1": (EFFICIENTNET, (24, 40, 112, 320)),
    "efficientnet_b2": (EFFICIENTNET, (24, 48, 120, 352)),
    "efficientnet_b3": (EFFICIENTNET, (32, 48, 136, 384)),
    "efficientnet_b4": (EFFICIENTNET, (32, 56, 160, 448)),
    "efficientnet_b5": (EFFICIENTNET, (40, 64, 176, 512)),
    "efficientnet_b6": (EFFICIENTNET, (40, 72, 200, 576)),
    "efficientnet_b7": (EFFICIENTNET, (48, 80, 224, 640)),
    "efficientnet_v2_s": (cut(2, 3, 4, 6, 7, tail=("classifier.", "features.7.")), (48, 64, 160, 256)),
    "efficientnet_v2_m": (EFFICIENTNET, (48, 80, 176, 512)),
    "efficientnet_v2_l": (EFFICIENTNET, (64, 96, 224, 640)),
    "convnext_tiny": (CONVNEXT, (96, 192, 384, 768)),
    "convnext_small": (CONVNEXT, (96, 192, 384, 768)),
    "convnext_base": (CONVNEXT, (128, 256, 512, 1024)),
    "convnext_large": (CONVNEXT, (192, 384, 768, 1536)),
    "regnet_x_400mf": (REGNET, (32, 64, 160, 400)),
    "regnet_x_800mf": (REGNET, (64, 128, 288, 672)),
    "regnet_x_1_6gf": (REGNET, (72, 168, 408, 912)),
    "regnet_x_3_2gf": (REGNET, (96, 192, 432, 1008)),
    "regnet_x_8gf": (REGNET, (80, 240, 720, 1920)),
    "regnet_x_16gf": (REGNET, (256, 512, 896, 2048)),
    "regnet_x_32gf": (REGNET, (336, 672, 1344, 2520)),
    "regnet_y_400mf": (REGNET, (48, 104, 208, 440)),
    "regnet_y_800mf": (REGNET, (64, 144, 320, 784)),
    "regnet_y_1_6gf": (REGNET, (48, 120, 336, 888)),
    "regnet_y_3_2gf": (REGNET, (72, 216, 576, 1512)),
    "regnet_y_8gf": (REGNET, (224, 448, 896, 2016)),
    "regnet_y_16gf": (REGNET, (224, 448, 1232, 3024)),
    "regnet_y_32gf": (REGNET, (232, 696, 1392, 3712)),
    "regnet_y_128gf": (REGNET, (528, 1056, 2904, 7392)),
    "swin_t": (SWIN, (96, 192, 384, 768)),
    "swin_s": (SWIN, (96, 192, 384, 768)),
    "swin_b": (SWIN, (128, 256, 512, 1024)),
    "swin_v2_t": (SWIN, (96, 192, 384, 768)),
    "swin_v2_s": (SWIN, (96, 192, 384, 768)),
    "swin_v2_b": (SWIN, (128, 256, 512, 1024)),
}


# name: blocks of each stage, channels of a group, squeeze-excitation (arXiv 2003.13678, Tables 5 and 6).
REGNETS = {
    "regnet_x_400mf": ((1, 2, 7, 12), 16, None),
    "regnet_x_800mf": ((1, 3, 7, 5), 16, None),
    "regnet_x_1_6gf": ((2, 4, 10, 2), 24, None),
    "regnet_x_3_2gf": ((2, 6, 15, 2), 48, None),
    "regnet_x_8gf": ((2, 5, 15, 1), 120, None),
    "regnet_x_16gf": ((2, 6, 13, 1), 128, None),
    "regnet_x_32gf": ((2, 7, 13, 1), 168, None),
    "regnet_y_400mf": ((1, 3, 6, 6), 8, 0.25),
    "regnet_y_800mf": ((1, 3, 8, 2), 16, 0.25),
    "regnet_y_1_6gf": ((2, 6, 17, 2), 24, 0.25),
    "regnet_y_3_2gf": ((2, 5, 13, 1), 24, 0.25),
    "regnet_y_8gf": ((2, 4, 10, 1), 56, 0.25),
    "regnet_y_16gf": ((2, 4, 11, 1), 112, 0.25),
    "regnet_y_32gf": ((2, 5, 12, 1), 232, 0.25),
    "regnet_y_128gf": ((2, 7, 17, 1), 264, 0.25),
}


def regnet(name: str) -> nn.Module:
    """torchvision's RegNet by its widths; `models.regnet_*` compute them in tensors, which the meta device cannot."""
    depths, group_width, se_ratio = REGNETS[name]
    widths = TABLE[name][1]
    groups = [min(group_width, width) for width in widths]
    return RegNet(BlockParams(depths, widths, groups, [1.0] * 4, [2] * 4, se_ratio))


def densenet(name: str) -> nn.Module:
    """torchvision's DenseNet with the ReLU after norm5 as a module; torchvision's has it in the forward only."""
    net = getattr(models, name)()
    net.features.add_module("relu5", nn.ReLU(inplace=True))
    return net


def googlenet() -> nn.Module:
    """torchvision's GoogLeNet without what only its classifier needs; passing `init_weights` avoids its warning."""
    return models.googlenet(aux_logits=False, transform_input=False, init_weights=False)


def vgg(name: str) -> nn.Module:
    """torchvision's VGG without fc6 to fc8, nine tenths of its weights, whose initialization takes seconds."""
    depth, _, bn = name.removeprefix("vgg").partition("_")
    net = nn.Module()
    net.features = make_layers(cfgs[{"11": "A", "13": "B", "16": "D", "19": "E"}[depth]], batch_norm=bool(bn))
    return net.apply(init_weights)


CONSTRUCTORS: dict[str, Callable[[], nn.Module]] = {
    "googlenet": googlenet,
    **{name: functools.partial(densenet, name) for name in TABLE if name.startswith("densenet")},
    **{name: functools.partial(regnet, name) for name in REGNETS},
    **{name: functools.partial(vgg, name) for name in TABLE if name.startswith("vgg")},
}


def torchvision_extractor(
    name: str,
    *,
    norm: str = "BN",
    in_channels: int = 3,
    out_features: Sequence[str] | Mapping[str, str] = tuple(STRIDES),
) -> Extractor:
    """The `Extractor` of a row of `TABLE`, with random weights."""
    layout, channels = TABLE[name]
    net = (CONSTRUCTORS.get(name) or getattr(models, name))()
    options = {"norm": norm, "in_channels": in_channels, "out_features": out_features}
    return Extractor(net, channels=channels, **layout._asdict(), **options)
