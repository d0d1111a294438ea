"""Shortcuts: what carries x past the residual function, arXiv 1512.03385 §3.3."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, unknown
from .layers import conv2d, get_norm

SHORTCUTS = {
    "A": "zero padding where shapes differ",
    "B": "projection where shapes differ",
    "C": "projection everywhere",
    "D": "B after a 2x2 average pool, so that no position is skipped (ResNet-D, arXiv 1812.01187 §4.2)",
    "B3x3": "B with a 3x3 projection where the stride is 2 (SENet-154, arXiv 1709.01507 appendix)",
    "none": "no shortcut, the plain nets",
}


class ZeroPad(nn.Module):
    """Option A: every `stride`-th position, and zeros for the new channels. No parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class NoShortcut(nn.Module):
    """The shortcut of a plain net: y = residual(x) + 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def build_shortcut(kind: str, in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Module | None:
    """The shortcut of a block, a key of `SHORTCUTS`; None is the identity. A projection ends with its norm."""
    if kind not in SHORTCUTS:
        raise UserError(unknown("shortcut", kind, SHORTCUTS))
    if kind == "none":
        return NoShortcut()
    if stride == 1 and in_channels == out_channels and kind != "C":
        return None
    if kind == "A":
        if out_channels < in_channels:
            raise UserError(f"shortcut A pads channels and cannot go from {in_channels} to {out_channels}.")
        return ZeroPad(out_channels - in_channels, stride)
    if kind == "D":
        pool = nn.Identity() if stride == 1 else nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(pool, conv2d(in_channels, out_channels, 1, norm), get_norm(norm, out_channels))
    kernel_size = 3 if kind == "B3x3" and stride > 1 else 1
    conv = conv2d(in_channels, out_channels, kernel_size, norm, stride=stride)
    return nn.Sequential(conv, get_norm(norm, out_channels))
