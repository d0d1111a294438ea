"""Stems: what turns an image into the input of res2, a quarter of its size (with the max-pool of `ResNet`)."""

from torch import nn

from .layers import conv2d


def conv7x7(in_channels: int, out_channels: int, norm: str) -> nn.Conv2d:
    """The stem of arXiv 1512.03385, Table 1: one 7x7 convolution of stride 2."""
    return conv2d(in_channels, out_channels, 7, norm, stride=2)
