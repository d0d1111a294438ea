"""The residual network of arXiv 1512.03385, Table 1, as a backbone: an image in, the features of its stages out."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError, unknown
from .layers import ShapeSpec, freeze, get_norm
from .stems import conv7x7

# The one table of which layerN is which resM. The papers and detectors say res2 … res5, checkpoints layer1 … layer4.
LAYERS = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


class ResNet(nn.Module):
    """ResNet and its relatives; a variant is a block, its depths and its widths (the rows of `backbones.py`).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in res2 … res5.
        groups, width_per_group: of the bottleneck's 3x3, ResNeXt's cardinality and width.
        in_channels: channels of the image.
        norm: "BN", "FrozenBN", "SyncBN", "GN" or "none".
        freeze_at: how much from the input on is frozen: 0 nothing, 1 the stem, 2 stem and res2, … 5 everything.
        out_features: which of "stem", "res2" … "res5" `forward` returns; stages past the last one are not built.

    Input (N, in_channels, H, W), output {"res2": (N, C2, H/4, W/4), … "res5": (N, C5, H/32, W/32)}, sizes rounded up.
    """

    def __init__(
        self,
        block: type[nn.Module],
        depths: Sequence[int],
        *,
        groups: int = 1,
        width_per_group: int = 64,
        in_channels: int = 3,
        norm: str = "BN",
        freeze_at: int = 0,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    ) -> None:
        super().__init__()
        self.out_features = check_out_features(out_features, ("stem", *LAYERS))
        check_freeze_at(freeze_at)

        self.conv1 = conv7x7(in_channels, 64, norm)
        self.bn1 = get_norm(norm, 64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self._shapes = {"stem": ShapeSpec(64, 4)}
        channels, last_stage = (
            64,
            max((list(LAYERS).index(f) + 1 for f in out_features if f != "stem"), default=0),
        )
        for i, (feature, layer) in enumerate(list(LAYERS.items())[:last_stage]):
            planes = 64 * 2**i
            stage = nn.Sequential()
            for j in range(depths[i]):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(block(channels, planes, stride, groups, width_per_group, norm))
                channels = planes * block.expansion
            setattr(self, layer, stage)
            self._shapes[feature] = ShapeSpec(channels, 4 * 2**i)

        self.apply(init_weights)
        for name in ["conv1", "bn1", *LAYERS.values()][: freeze_at + 1 if freeze_at else 0]:
            if hasattr(self, name):
                setattr(self, name, freeze(getattr(self, name)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(F.relu_(self.bn1(self.conv1(images))))
        features = {"stem": x}
        for feature, layer in LAYERS.items():
            if feature in self._shapes:
                features[feature] = x = getattr(self, layer)(x)
        return {name: features[name] for name in self.out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: self._shapes[name] for name in self.out_features}


def init_weights(module: nn.Module) -> None:
    """He initialisation, fan-out (arXiv 1502.01852 §2.2), for convolutions; norms keep weight 1 and bias 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_out_features(out_features: Sequence[str], valid: Sequence[str]) -> list[str]:
    """The wanted features in the network's own order. Raises `UserError` for an unknown one or none."""
    for feature in out_features:
        if feature not in valid:
            raise UserError(unknown("feature", feature, valid))
    if not out_features:
        raise UserError(f"out_features is empty; choose from {', '.join(valid)}.")
    return [feature for feature in valid if feature in out_features]


def check_freeze_at(freeze_at: int) -> None:
    """Raise `UserError` unless `freeze_at` is 0 … 5."""
    if freeze_at not in range(6):
        raise UserError(f"freeze_at is {freeze_at}; it must be 0 (nothing), 1 (stem), 2 (stem and res2) … 5 (all).")
