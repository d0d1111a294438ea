"""Convolutions and their gradients as products of matrices, where these are faster on the CPU.

With the vectors of channels as rows, X of the input, Y of the output and G of its gradient, a 1x1 convolution is
Y = X W^T, and its gradients are G W and G^T X. For a larger kernel, X has the values below the kernel as rows, the
patches. Then W is used and its gradient comes as they lie in memory, where a convolution would reorder both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .onednn import Options


def has_few_positions(x: Tensor, weight: Tensor, options: Options) -> bool:
    """Whether the patches of a dense convolution in channels_last, larger than 1x1, are smaller than its weights."""
    stride, _, dilation, groups = options
    if x.device.type != "cpu" or x.dtype != weight.dtype or weight.shape[2:] == (1, 1):
        return False
    positions = x.shape[0] * (x.shape[2] // stride[0]) * (x.shape[3] // stride[1])
    dense = groups == 1 and dilation == (1, 1) and not torch._C._are_functorch_transforms_active()
    return dense and 0 < positions < len(weight) and x.is_contiguous(memory_format=torch.channels_last)


def conv_by_patches(x: Tensor, weight: Tensor, options: Options) -> Tensor:
    """conv(x, weight) in channels_last."""
    stride, padding, _, _ = options
    patches, (height, width) = _patches(x, weight.shape[2:], stride, padding)
    return _from_rows(patches.T @ weight.flatten(1).T, len(x), height, width)


def conv_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, options: Options, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, where wanted, from that of y = conv(x, weight)."""
    stride, padding, dilation, groups = options
    if has_few_positions(x, weight, options):
        return _gradients_by_patches(grad, x, weight, stride, padding, of_x, of_weight)
    in_rows = all(t.device.type == "cpu" and t.is_contiguous(memory_format=torch.channels_last) for t in (grad, x))
    if in_rows and weight.shape[2:] == (1, 1) and groups == 1 and padding == (0, 0):
        return _gradients_of_1x1(grad, x, weight, stride, of_x, of_weight)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        *(grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups), (of_x, of_weight, False)
    )
    return grad_x, grad_weight


def _gradients_of_1x1(grad, x, weight, stride, of_x, of_weight):
    grad_x = grad_weight = None
    if of_x:
        grad_x = _from_rows(_rows(grad) @ weight.flatten(1), len(grad), *grad.shape[2:])
        if stride != (1, 1):
            spread = torch.zeros_like(x, dtype=grad_x.dtype)
            spread[:, :, :: stride[0], :: stride[1]] = grad_x
            grad_x = spread
    if of_weight:
        grad_weight = (_rows(grad).T @ _rows(x[:, :, :: stride[0], :: stride[1]]))[:, :, None, None]
    return grad_x, grad_weight


def _gradients_by_patches(grad, x, weight, stride, padding, of_x, of_weight):
    grad_x = grad_weight = None
    rows = _rows(grad)
    if of_x:
        grad_x = _sum_of_patches(weight.flatten(1).T @ rows.T, x, weight.shape[2:], stride, padding)
    if of_weight:
        patches, _ = _patches(x, weight.shape[2:], stride, padding)
        grad_weight = (rows.T @ patches.T).view_as(weight)
    return grad_x, grad_weight


def _rows(x: Tensor) -> Tensor:
    """From (N, C, H, W) to (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _from_rows(rows: Tensor, n: int, height: int, width: int) -> Tensor:
    return rows.unflatten(0, (n, height, width)).permute(0, 3, 1, 2)


def _patches(
    x: Tensor, size: tuple[int, int], stride: tuple[int, ...], padding: tuple[int, ...]
) -> tuple[Tensor, torch.Size]:
    """From (N, C, H, W) to (C * KH * KW, N * H' * W'), and H', W'."""
    x = F.pad(x.contiguous(), (padding[1], padding[1], padding[0], padding[0]))
    patches = x.unfold(2, size[0], stride[0]).unfold(3, size[1], stride[1])  # N, C, H', W', KH, KW
    return patches.permute(1, 4, 5, 0, 2, 3).flatten(3).flatten(0, 2), patches.shape[2:4]


def _sum_of_patches(patches, x, size, stride, padding):
    """The transpose of `_patches`: each value is added to where it was taken from."""
    n, c, height, width = x.shape
    total = patches.new_zeros(c, n, height + 2 * padding[0], width + 2 * padding[1])
    places = total.unfold(2, size[0], stride[0]).unfold(3, size[1], stride[1])  # C, N, H', W', KH, KW
    patches = patches.unflatten(0, (c, *size)).unflatten(3, places.shape[1:4])
    for i in range(size[0]):
        for j in range(size[1]):
            places[..., i, j] += patches[:, i, j]
    total = total[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return total.transpose(0, 1).contiguous(memory_format=torch.channels_last)
