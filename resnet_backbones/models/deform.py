"""Deformable convolution in place of a block's 3x3 (arXiv 1703.06211), modulated in its second version (1811.11168)."""

import torch
import torchvision
from torch import Tensor, nn


class DeformConv2d(torchvision.ops.DeformConv2d):
    """y(p) = sum_k w_k * x(p + p_k + offset_k(p)) * m_k(p), where offsets, and in version 2 the mask m, come from x.

    `offset` gives the y and x offsets of each of the 9 positions, then the mask's logits, in detectron2's order. It
    starts at zero, where the layer is the convolution it is made from (times 1/2, the sigmoid of 0, in version 2).
    The weight keeps its name, so published weights load into it.
    """

    def __init__(self, conv: nn.Conv2d, modulated: bool) -> None:
        super().__init__(
            *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation),
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.weight, self.bias = conv.weight, conv.bias
        positions = conv.kernel_size[0] * conv.kernel_size[1]
        self.modulated = modulated
        self.offset = nn.Conv2d(
            conv.in_channels,
            positions * (3 if modulated else 2),
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
        )
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        offset = self.offset(x)
        if not self.modulated:
            return super().forward(x, offset)
        y, x_, mask = offset.chunk(3, dim=1)
        return super().forward(x, torch.cat((y, x_), dim=1), mask.sigmoid())
