"""Residual blocks: y = relu(shortcut(x) + residual(x)), arXiv 1512.03385 equations (1) and (2).

A block maps (N, in_channels, H, W) to (N, planes * expansion, H / stride, W / stride), sizes rounded up. `planes` is
the paper's base width of the stage: 64, 128, 256, 512.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError
from .layers import conv2d, get_norm


def projection(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Sequential | None:
    """Shortcut B of arXiv 1512.03385 §3.3: the identity (None) where shapes agree, else a strided 1x1 convolution."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv2d(in_channels, out_channels, 1, norm, stride=stride), get_norm(norm, out_channels))


class BasicBlock(nn.Module):
    """residual(x) = bn2(conv2(relu(bn1(conv1(x))))), two 3x3 convolutions (Figure 5, left)."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        norm: str = "BN",
    ) -> None:
        super().__init__()
        if groups != 1 or width_per_group != 64:
            raise UserError("A basic block has no groups or width; use a bottleneck variant such as resnext50_32x4d.")
        self.conv1 = conv2d(in_channels, planes, 3, norm, stride=stride)
        self.bn1 = get_norm(norm, planes)
        self.conv2 = conv2d(planes, planes, 3, norm)
        self.bn2 = get_norm(norm, planes)
        self.downsample = projection(in_channels, planes, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return F.relu_(x + shortcut)


class Bottleneck(nn.Module):
    """residual(x) = bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))), 1x1, 3x3, 1x1 (Figure 5, right).

    The 3x3 has `groups` groups (the cardinality of ResNeXt, arXiv 1611.05431) of `width_per_group` channels for each
    64 planes, and carries the stride as in torchvision and timm ("v1.5").
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        norm: str = "BN",
    ) -> None:
        super().__init__()
        width = planes * width_per_group // 64 * groups
        out_channels = planes * self.expansion
        self.conv1 = conv2d(in_channels, width, 1, norm)
        self.bn1 = get_norm(norm, width)
        self.conv2 = conv2d(width, width, 3, norm, stride=stride, groups=groups)
        self.bn2 = get_norm(norm, width)
        self.conv3 = conv2d(width, out_channels, 1, norm)
        self.bn3 = get_norm(norm, out_channels)
        self.downsample = projection(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return F.relu_(x + shortcut)
