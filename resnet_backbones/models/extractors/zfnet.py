"""ZFNet of arXiv 1311.2901, Figure 3, in the form that py-faster-rcnn uses."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from ..layers import conv2d, init_weights
from .torchvision import Extractor

STAGES = {
    "stem": ["conv1", "relu1", "norm1"],
    "res2": ["pool1"],
    "res3": ["conv2", "relu2", "norm2"],
    "res4": ["pool2", "conv3", "relu3", "conv4", "relu4", "conv5", "relu5"],
    "res5": ["pool5"],
}


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A "same" convolution with a bias."""
    layer = conv2d(in_channels, out_channels, kernel_size, "none", stride=stride)
    init_weights(layer)
    return layer


def contrast_norm() -> nn.LocalResponseNorm:
    """Across feature maps as the paper has it (§3), with py-faster-rcnn's constants."""
    return nn.LocalResponseNorm(3, alpha=5e-5, beta=0.75)


def pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, padding=1)


def zfnet(
    *,
    norm: str = "BN",
    in_channels: int = 3,
    out_features: Sequence[str] | Mapping[str, str] = ("res2", "res3", "res4", "res5"),
) -> Extractor:
    """ZFNet's features: pool1, conv2, conv5 and pool5, of (H, W) / stride rounded up, with 96, 256, 256, 256 channels.

    Unlike the paper's, every convolution and pool is padded, as in py-faster-rcnn's `ZF` models, so that positions in
    the maps are positions in the image. There are no batch norms: `norm` changes nothing. Raises `UserError` for an
    unknown norm or feature.
    """
    modules = OrderedDict(
        conv1=conv(in_channels, 96, 7, stride=2),
        relu1=nn.ReLU(inplace=True),
        norm1=contrast_norm(),
        pool1=pool(),
        conv2=conv(96, 256, 5, stride=2),
        relu2=nn.ReLU(inplace=True),
        norm2=contrast_norm(),
        pool2=pool(),
        conv3=conv(256, 384, 3),
        relu3=nn.ReLU(inplace=True),
        conv4=conv(384, 384, 3),
        relu4=nn.ReLU(inplace=True),
        conv5=conv(384, 256, 3),
        relu5=nn.ReLU(inplace=True),
        pool5=pool(),
    )
    return Extractor(nn.Sequential(modules), STAGES, (96, 256, 256, 256), norm=norm, out_features=out_features)
