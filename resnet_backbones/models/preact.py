"""Pre-activation: y = shortcut(x) + residual(x), each convolution after its BN-ReLU (arXiv 1603.05027, Figure 4 e).

The paper's first unit of a net, and every unit whose shortcut is a projection, activates x before the paths split, so
the raw x is not used further. Here that BN-ReLU closes the previous stage: inside a stage the raw sum is passed on; at
its end it is normalized and activated, once, for the next stage and for every head that taps the feature. An FPN on
the raw sums trains badly. In a classifier every one of these norms is trained, so none is at its initialization in a
detector.

The bottlenecks are timm's `resnetv2_50`, `_101`, `_152`, whose `stages.K.blocks.0.norm1` is our `layerK.bn` (our `bn1`
for K = 0) and whose `norm` is our `layer4.bn`. In timm's `resnetv2_18` and `_34` the first unit's identity carries the
raw pooled stem; here, as in the paper's appendix, it carries the activated one.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .backbone import ShapeSpec
from .blocks import BasicBlock, Bottleneck
from .layers import get_norm
from .resnet import ResNet


class PreActBasicBlock(BasicBlock):
    """residual(x) = conv2(relu(bn2(conv1(relu(bn1(x)))))); `bn1` is None for activated x."""

    conv_norms = (("conv1", "bn2"),)

    def __init__(self, in_channels: int, planes: int, stride: int = 1, *, norm: str = "BN", **options) -> None:
        super().__init__(in_channels, planes, stride, norm=norm, **options)
        self.bn1 = get_norm(norm, in_channels)
        self.relu = nn.ReLU()  # not in place: with norm "none" it would overwrite x, which the shortcut carries
        self.downsample = _without_norm(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        a = x if self.bn1 is None else self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(a)
        a = self.relu(self.bn2(self.conv1(a)))
        a = self.drop_path(self.se(self.conv2(a)))
        a += shortcut
        return a


class PreActBottleneck(Bottleneck):
    """residual(x) = conv3(relu(bn3(conv2(relu(bn2(conv1(relu(bn1(x))))))))); `bn1` is None for activated x."""

    conv_norms = (("conv1", "bn2"), ("conv2", "bn3"))

    def __init__(self, in_channels: int, planes: int, stride: int = 1, *, norm: str = "BN", **options) -> None:
        super().__init__(in_channels, planes, stride, norm=norm, **options)
        self.bn1 = get_norm(norm, in_channels)
        self.bn2 = get_norm(norm, self.conv1.out_channels)
        self.bn3 = get_norm(norm, self.conv2.out_channels)
        self.relu = nn.ReLU()  # not in place: with norm "none" it would overwrite x, which the shortcut carries
        self.downsample = _without_norm(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        a = x if self.bn1 is None else self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(a)
        a = self.relu(self.bn2(self.conv1(a)))
        a = self.relu(self.bn3(self.conv2(a)))
        a = self.drop_path(self.se(self.conv3(a)))
        a += shortcut
        return a


class PreActResNet(ResNet):
    """A ResNet of pre-activation units: the pooled stem and the end of each stage are normalized and activated."""

    conv_norms = ()

    def make_stem(self, stem: Callable, in_channels: int, norm: str) -> ShapeSpec:
        self.conv1, self.maxpool, shape = stem(in_channels, norm)
        self.bn1 = get_norm(norm, shape.channels)
        self.relu = nn.ReLU(inplace=True)
        return shape

    def stem(self, images: Tensor) -> tuple[Tensor, Tensor]:
        conv1 = self.conv1(images)
        return conv1, self.relu(self.bn1(self.maxpool(conv1)))

    def make_stage(self, in_channels: int, *args, norm: str, **options) -> nn.Sequential:
        stage = super().make_stage(in_channels, *args, norm=norm, **options)
        stage[0].bn1 = None  # the BN-ReLU that closes the previous stage
        last = stage[-1]
        out_channels = (last.conv3 if isinstance(last, Bottleneck) else last.conv2).out_channels
        stage.add_module("bn", get_norm(norm, out_channels))
        stage.add_module("relu", nn.ReLU(inplace=True))
        return stage


def _without_norm(projection: nn.Module | None) -> nn.Module | None:
    """A pre-activated projection is bare: the norm of the sum comes next."""
    return projection[:-1] if isinstance(projection, nn.Sequential) else projection
