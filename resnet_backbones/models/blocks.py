"""Residual blocks: y = relu(shortcut(x) + residual(x)), arXiv 1512.03385 equations (1) and (2).

A block maps (N, in_channels, H, W) to (N, planes * expansion, H / stride, W / stride), sizes rounded up. `planes` is
the paper's base width of the stage: 64, 128, 256, 512. `shortcut` is a key of `shortcuts.SHORTCUTS`; `attention`,
such as `SqueezeExcitation`, is built for the channels of the residual and scales it. `drop_path` is the identity
unless `variants.stochastic_depth` replaces it. `conv_norms` lists which norm follows which convolution, for
`fold_norms` and `fuse`; a block without it works as well, unfolded.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .layers import conv2d, get_norm
from .shortcuts import build_shortcut

Attention = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """residual(x) = bn2(conv2(relu(bn1(conv1(x))))), two 3x3 convolutions (Figure 5, left)."""

    expansion = 1
    conv_norms = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        *,
        norm: str = "BN",
        shortcut: str = "B",
        attention: Attention | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = conv2d(in_channels, planes, 3, norm, stride=stride)
        self.bn1 = get_norm(norm, planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv2d(planes, planes, 3, norm)
        self.bn2 = get_norm(norm, planes)
        self.se = attention(planes) if attention else nn.Identity()
        self.drop_path = nn.Identity()
        self.downsample = build_shortcut(shortcut, in_channels, planes, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x = self.drop_path(self.se(x))
        x += shortcut
        return self.relu(x)


class Bottleneck(nn.Module):
    """residual(x) = bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))), 1x1, 3x3, 1x1 (Figure 5, right).

    Args:
        groups, width_per_group: the 3x3 has `groups` groups (the cardinality of ResNeXt, arXiv 1611.05431) of
            `width_per_group` channels for each 64 planes.
        reduce_first: the first 1x1 has this many times fewer channels than the 3x3 (2 in SENet-154).
        stride_in_1x1: the first 1x1 carries the stride, as in the paper and its Caffe models; otherwise the 3x3, as
            in torchvision and timm ("v1.5").
    """

    expansion = 4
    conv_norms = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        *,
        norm: str = "BN",
        groups: int = 1,
        width_per_group: int = 64,
        reduce_first: int = 1,
        stride_in_1x1: bool = False,
        shortcut: str = "B",
        attention: Attention | None = None,
    ) -> None:
        super().__init__()
        width = planes * width_per_group // 64 * groups
        first_width, out_channels = width // reduce_first, planes * self.expansion
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv2d(in_channels, first_width, 1, norm, stride=stride_1x1)
        self.bn1 = get_norm(norm, first_width)
        self.conv2 = conv2d(first_width, width, 3, norm, stride=stride_3x3, groups=groups)
        self.bn2 = get_norm(norm, width)
        self.conv3 = conv2d(width, out_channels, 1, norm)
        self.bn3 = get_norm(norm, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.se = attention(out_channels) if attention else nn.Identity()
        self.drop_path = nn.Identity()
        self.downsample = build_shortcut(shortcut, in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x = self.drop_path(self.se(x))
        x += shortcut
        return self.relu(x)
