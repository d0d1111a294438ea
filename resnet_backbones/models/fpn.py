"""Feature Pyramid Networks, arXiv 1612.03144 §3, and the levels above P5."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, unknown
from .backbone import Backbone, ShapeSpec, check_out_features
from .layers import conv2d, get_norm
from .naming import named_as_now

LATERALS = {"p2": "res2", "p3": "res3", "p4": "res4", "p5": "res5"}


class MaxPoolP6(nn.Module):
    """P6 is P5 subsampled by 2, used for proposals only (arXiv 1612.03144 §4.1, footnote 2)."""

    levels = ("p6",)

    def forward(self, p5: Tensor, res5: Tensor) -> list[Tensor]:
        return [F.max_pool2d(p5, kernel_size=1, stride=2)]


class ConvP6P7(nn.Module):
    """P6 = conv(x), P7 = conv(relu(P6)), 3x3 of stride 2.

    x is res5 (RetinaNet, arXiv 1708.02002 §4) or p5 (FCOS, arXiv 1904.01355 §3.2; all of torchvision's but
    `retinanet_resnet50_fpn_v2`).
    """

    levels = ("p6", "p7")

    def __init__(self, x: str, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.x = x
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, p5: Tensor, res5: Tensor) -> list[Tensor]:
        p6 = self.p6(res5 if self.x == "res5" else p5)
        return [p6, self.p7(F.relu(p6))]


class Pyramid(nn.Module):
    """P_l = output_l(M_l), M_l = lateral_l(C_l) + upsample(M_{l+1}); laterals are 1x1, outputs 3x3, no ReLU (§3).

    Up-sampling is nearest-neighbour to the lateral's size, so that odd sizes work. The parameters have the names of
    torchvision's `FeaturePyramidNetwork` (`inner_blocks` are the laterals, `layer_blocks` the outputs).
    """

    def __init__(self, channels: Sequence[int], out_channels: int, norm: str, top: nn.Module | None) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(_conv_norm(c, out_channels, 1, norm) for c in channels)
        self.layer_blocks = nn.ModuleList(_conv_norm(out_channels, out_channels, 3, norm) for _ in channels)
        self.extra_blocks = top
        self.init_weights()
        self.register_load_state_dict_pre_hook(name_as_torchvision_does_now)

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # Xavier, as in every FPN of the field; there is no ReLU behind these
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        merged = self.inner_blocks[-1](features[-1])
        outputs = [self.layer_blocks[-1](merged)]
        for i in reversed(range(len(features) - 1)):
            lateral = self.inner_blocks[i](features[i])
            merged = F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            merged += lateral
            outputs.insert(0, self.layer_blocks[i](merged))
        if self.extra_blocks is not None:
            outputs += self.extra_blocks(outputs[-1], features[-1])
        return outputs


class FPN(Backbone):
    """A backbone made of a backbone: res2 … res5 of `body` in, p2 … p7 of equal width out, p_l at stride 2^l.

    Args:
        body: a backbone that gives at least the residual features the wanted levels need.
        out_channels: channels of every level.
        norm: after each pyramid convolution; "none" in the paper.
        out_features: levels to return, or a dict of these and the names to return them under. "p7" brings
            RetinaNet's strided convolutions for P6 and P7, "p6" without "p7" the paper's subsampled P5. Levels below
            the lowest wanted are not computed.
        p6_input: "res5" or "p5", what RetinaNet's P6 is made from.

    Raises `UserError` if `body` lacks a feature that a level needs.
    """

    def __init__(
        self,
        body: nn.Module,
        out_channels: int = 256,
        norm: str = "none",
        out_features: Sequence[str] | Mapping[str, str] = ("p2", "p3", "p4", "p5", "p6"),
        p6_input: str = "res5",
    ) -> None:
        super().__init__()
        if p6_input not in ("res5", "p5"):
            raise UserError(unknown("p6_input of an FPN", p6_input, ("res5", "p5")))
        self.out_features = check_out_features(out_features, (*LATERALS, "p6", "p7"))
        shapes = body.output_shape()
        lowest = min((list(LATERALS).index(f) for f in self.out_features if f in LATERALS), default=3)
        self.in_features = list(LATERALS.values())[lowest:]
        check_body(shapes, self.in_features, self.out_features)
        channels = [shapes[f].channels for f in self.in_features]
        top = None
        if "p7" in self.out_features:
            top = ConvP6P7(p6_input, channels[-1] if p6_input == "res5" else out_channels, out_channels)
        elif "p6" in self.out_features:
            top = MaxPoolP6()
        self.levels = [*list(LATERALS)[lowest:], *(top.levels if top else ())]
        self.shapes = {level: ShapeSpec(out_channels, 2 ** int(level[1:])) for level in self.levels}
        self.body = body
        self.fpn = Pyramid(channels, out_channels, norm, top)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        outputs = dict(zip(self.levels, self.fpn([features[f] for f in self.in_features]), strict=True))
        return {name: outputs[level] for level, name in self.out_features.items()}


def name_as_torchvision_does_now(pyramid: Pyramid, state: dict[str, Tensor], prefix: str, *_) -> None:
    """Before `pyramid` loads `state`, rename the `inner_blocks.0.weight` of torchvision before 0.13."""
    own = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
    state |= named_as_now(own)


def check_body(shapes: dict[str, ShapeSpec], in_features: Sequence[str], out_features: Sequence[str]) -> None:
    """Raise `UserError` if a body of these shapes lacks one of `in_features`, or has it at another stride."""
    missing = [f for f in in_features if f not in shapes]
    if missing:
        features = list(LATERALS.values())
        possible = [level for k, level in enumerate(LATERALS) if all(f in shapes for f in features[k:])]
        remedy = (
            f"choose out_features from {', '.join([*possible, 'p6', 'p7'])}"
            if possible
            else "use its name without _fpn"
        )
        raise UserError(
            f"FPN levels {', '.join(out_features)} need {', '.join(missing)} of the backbone, which gives "
            f"{', '.join(shapes)}; {remedy}."
        )
    for level, feature in LATERALS.items():
        if feature in in_features and shapes[feature].stride != 2 ** int(level[1:]):
            raise UserError(
                f"{level} of an FPN has stride {2 ** int(level[1:])}, but the backbone's {feature} has "
                f"{shapes[feature].stride}; output_stride below 32 is for heads without a pyramid."
            )


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> nn.Sequential:
    conv = conv2d(in_channels, out_channels, kernel_size, norm)
    return nn.Sequential(conv) if norm == "none" else nn.Sequential(conv, get_norm(norm, out_channels))
