"""Stems: what turns an image into the input of res2.

Each returns the convolutions before `bn1`, the pooling after it, and the shape of the result.
"""

from torch import nn

from .backbone import ShapeSpec
from .layers import conv2d, get_norm


def conv7x7(in_channels: int, norm: str) -> tuple[nn.Module, nn.Module, ShapeSpec]:
    """One 7x7 convolution of stride 2 and a max-pool (arXiv 1512.03385, Table 1)."""
    return conv2d(in_channels, 64, 7, norm, stride=2), max_pool(), ShapeSpec(64, 4)


def deep(in_channels: int, norm: str, width: int = 32) -> tuple[nn.Module, nn.Module, ShapeSpec]:
    """Three 3x3 convolutions in place of the 7x7 (ResNet-C, arXiv 1812.01187 §4.2)."""
    convs = nn.Sequential(
        conv2d(in_channels, width, 3, norm, stride=2),
        get_norm(norm, width),
        nn.ReLU(inplace=True),
        conv2d(width, width, 3, norm),
        get_norm(norm, width),
        nn.ReLU(inplace=True),
        conv2d(width, 2 * width, 3, norm),
    )
    return convs, max_pool(), ShapeSpec(2 * width, 4)


def conv3x3(in_channels: int, norm: str, width: int = 16) -> tuple[nn.Module, nn.Module, ShapeSpec]:
    """One 3x3 convolution for the 32x32 images of CIFAR, at full size (arXiv 1512.03385 §4.2)."""
    return conv2d(in_channels, width, 3, norm), nn.Identity(), ShapeSpec(width, 1)


def max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, padding=1)
