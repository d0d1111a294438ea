"""The residual network of arXiv 1512.03385, Table 1, as a backbone: an image in, the features of its stages out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import stems
from .blocks import Stage
from .conv_norm import conv_norm, in_fastest_format
from .layers import ShapeSpec, check_out_features, get_norm, recompute, with_gradient_in_its_format

# The one table of which layerN is which resM. The papers and detectors say res2 … res5, checkpoints layer1 … layer4.
LAYERS = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


class ResNet(nn.Module):
    """ResNet and its relatives; a variant is a block, its depths and its widths (the rows of `backbones.py`).

    Args:
        block: `BasicBlock` or `Bottleneck`, or one of the same signature.
        depths: blocks in res2 … res5; three for the nets of CIFAR, which end with res4.
        stem: a function of `stems.py`.
        width: planes of res2, doubled in each further stage.
        in_channels: channels of the image.
        norm: "BN", "FrozenBN", "SyncBN", "GN" or "none".
        out_features: which of "stem", "res2" … "res5" `forward` returns; stages past the last one are not built.
        block_options: further arguments of `block`.

    Input (N, in_channels, H, W), output {"res2": (N, C2, H/4, W/4), … "res5": (N, C5, H/32, W/32)}, sizes rounded up;
    strides of 1, 2 and 4 with the stem of CIFAR.
    """

    def __init__(
        self,
        block: type[nn.Module],
        depths: Sequence[int],
        *,
        stem: Callable = stems.conv7x7,
        width: int = 64,
        in_channels: int = 3,
        norm: str = "BN",
        out_features: Sequence[str] | None = None,
        **block_options,
    ) -> None:
        super().__init__()
        valid = list(LAYERS)[: len(depths)]
        self.out_features = check_out_features(valid if out_features is None else out_features, ("stem", *valid))
        self.checkpointed: set[str] = set()  # stages whose activations are computed again in the backward pass
        self.conv1, self.maxpool, shape = stem(in_channels, norm)
        self.bn1 = get_norm(norm, shape.channels)
        self.shapes = {"stem": shape}
        self.stages = {"stem": ["conv1", "bn1"]}
        for i, feature in enumerate(valid[: _count_up_to(self.out_features[-1], valid)]):
            planes, stride = width * 2**i, 2 if i > 0 else 1
            stage = self.make_stage(shape.channels, block, planes, depths[i], stride, norm=norm, **block_options)
            setattr(self, LAYERS[feature], stage)
            shape = ShapeSpec(planes * block.expansion, shape.stride * stride)
            self.shapes[feature], self.stages[feature] = shape, [LAYERS[feature]]
        self.apply(init_weights)

    def make_stage(
        self, in_channels: int, block: type[nn.Module], planes: int, depth: int, stride: int, **options
    ) -> nn.Sequential:
        """`depth` blocks, the first of which changes size and channels."""
        first = block(in_channels, planes, stride, **options)
        return Stage(first, *(block(planes * block.expansion, planes, **options) for _ in range(depth - 1)))

    def stem(self, images: Tensor) -> Tensor:
        return self.maxpool(conv_norm(self.conv1, self.bn1, images, relu=True))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(in_fastest_format(images, self))
        features = {"stem": x}
        for feature in list(self.stages)[1:]:
            stage = getattr(self, LAYERS[feature])
            again = feature in self.checkpointed and torch.is_grad_enabled()
            features[feature] = x = recompute(stage, x) if again else stage(x)
        return {name: with_gradient_in_its_format(features[name]) for name in self.out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: self.shapes[name] for name in self.out_features}


def init_weights(module: nn.Module) -> None:
    """He initialisation, fan-out (arXiv 1502.01852 §2.2), for convolutions; norms keep weight 1 and bias 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _count_up_to(last: str, features: Sequence[str]) -> int:
    return features.index(last) + 1 if last in features else 0
