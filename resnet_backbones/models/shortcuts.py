"""Shortcuts: what carries x past the residual function, arXiv 1512.03385 §3.3."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, unknown
from .layers import conv2d, get_norm

SHORTCUTS = {
    "A": "zero padding where shapes differ, with the new channels at the end",
    "A_centered": "A with the new channels on both sides, as in the published nets of akamaster/pytorch_resnet_cifar10",
    "B": "projection where shapes differ",
    "C": "projection everywhere",
    "D": "B after a 2x2 average pool, so that no position is skipped (ResNet-D, arXiv 1812.01187 §4.2)",
    "B3x3": "B with a 3x3 projection where the stride is 2 (SENet-154, arXiv 1709.01507 appendix)",
    "none": "no shortcut, the plain nets",
}
ZERO_PADDED = ("A", "A_centered")


class ZeroPad(nn.Module):
    """Option A: every `stride`-th position, and zeros for the new channels. No parameters.

    `kind` is "A", with the new channels at the end, or "A_centered", with half of them on each side.
    """

    def __init__(self, new_channels: int, stride: int, kind: str = "A") -> None:
        super().__init__()
        self.new_channels, self.stride, self.kind = new_channels, stride, kind

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2 if self.kind == "A_centered" else 0
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))

    def extra_repr(self) -> str:
        return f"{self.new_channels}, stride={self.stride}, kind={self.kind}"


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
    if kind in ZERO_PADDED:
        if out_channels < in_channels:
            raise UserError(f"shortcut {kind} pads channels and cannot go from {in_channels} to {out_channels}.")
        return ZeroPad(out_channels - in_channels, stride, kind)
    if kind == "D":
        pool = nn.Identity() if stride == 1 else nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(pool, conv2d(in_channels, out_channels, 1, norm), get_norm(norm, out_channels))
    kernel_size = 3 if kind == "B3x3" and stride > 1 else 1
    conv = conv2d(in_channels, out_channels, kernel_size, norm, stride=stride)
    return nn.Sequential(conv, get_norm(norm, out_channels))
