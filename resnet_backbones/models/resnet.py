"""The residual network of arXiv 1512.03385, Table 1, as a backbone: an image in, the features of its stages out."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from . import stems
from .backbone import Backbone, ShapeSpec, check_out_features
from .layers import get_norm, init_weights

# The one table of which layerN is which resM. The papers and detectors say res2 … res5, checkpoints layer1 … layer4.
LAYERS = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


class ResNet(Backbone):
    """ResNet and its relatives; a variant is a block, its depths and its widths (the rows of `backbones.py`).

    Args:
        block: `BasicBlock` or `Bottleneck`, or one of the same signature.
        depths: blocks in res2 … res5; three for the nets of CIFAR, which end with res4.
        stem: a function of `stems.py`.
        width: planes of res2, doubled in each further stage.
        in_channels: channels of the image.
        norm: "BN", "FrozenBN", "SyncBN", "GN" or "none".
        out_features: which of "conv1", "stem", "res2" … "res5" `forward` returns, or a dict of these and the names to
            return them under; stages past the last one are not built. "conv1" and "stem" are what max-pooling takes
            and gives; the nets of CIFAR do not pool and have only "stem".
        block_options: further arguments of `block`.

    Input (N, in_channels, H, W), output {"res2": (N, C2, H/4, W/4), … "res5": (N, C5, H/32, W/32)}, sizes rounded up;
    strides of 1, 2 and 4 with the stem of CIFAR.
    """

    conv_norms = (("conv1", "bn1"),)

    def __init__(
        self,
        block: type[nn.Module],
        depths: Sequence[int],
        *,
        stem: Callable = stems.conv7x7,
        width: int = 64,
        in_channels: int = 3,
        norm: str = "BN",
        out_features: Sequence[str] | Mapping[str, str] | None = None,
        **block_options,
    ) -> None:
        super().__init__()
        shape = self.make_stem(stem, in_channels, norm)
        self.shapes = {"conv1": ShapeSpec(shape.channels, shape.stride // 2)} if shape.stride > 1 else {}
        self.shapes["stem"] = shape
        stages = list(LAYERS)[: len(depths)]
        wanted = stages if out_features is None else out_features
        self.out_features = check_out_features(wanted, [*self.shapes, *stages])
        self.stages = {"stem": ["conv1", "bn1"]}
        last = list(self.out_features)[-1]
        for i, feature in enumerate(stages[: stages.index(last) + 1] if last in stages else []):
            planes, stride = width * 2**i, 2 if i > 0 else 1
            stage = self.make_stage(shape.channels, block, planes, depths[i], stride, norm=norm, **block_options)
            self.add_module(LAYERS[feature], stage)
            shape = ShapeSpec(planes * block.expansion, shape.stride * stride)
            self.shapes[feature], self.stages[feature] = shape, [LAYERS[feature]]
        self.apply(init_weights)

    def make_stem(self, stem: Callable, in_channels: int, norm: str) -> ShapeSpec:
        """Register the modules of the stem, in the order of the forward pass, which is torchvision's."""
        self.conv1, maxpool, shape = stem(in_channels, norm)
        self.bn1 = get_norm(norm, shape.channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = maxpool
        return shape

    def make_stage(
        self, in_channels: int, block: type[nn.Module], planes: int, depth: int, stride: int, **options
    ) -> nn.Sequential:
        """`depth` blocks, the first of which changes size and channels."""
        first = block(in_channels, planes, stride, **options)
        return nn.Sequential(first, *(block(planes * block.expansion, planes, **options) for _ in range(depth - 1)))

    def stem(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features "conv1" and "stem"."""
        conv1 = self.relu(self.bn1(self.conv1(images)))
        return conv1, self.maxpool(conv1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        conv1, x = self.stem(images)
        features = {"conv1": conv1, "stem": x}
        for feature in list(self.stages)[1:]:
            x = self.get_submodule(LAYERS[feature])(x)
            features[feature] = x
        return {name: features[feature] for feature, name in self.out_features.items()}
