"""The passes of y = relu(conv(x, weight * scale) + shift + plus), forward and backward."""

import torch
from torch import Tensor

from . import onednn
from .kept_products import kept_product, product
from .matrices import conv_by_patches, conv_gradients, has_few_positions
from .onednn import Options


def forward_pass(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    plus: Tensor | None,
    options: Options,
    relu: bool,
    keep: bool,
    overwrite: bool = False,
) -> Tensor:
    """y, for `scale` and `shift` (C,); `keep` the product for the next call, `overwrite` the memory of `plus`."""
    if not keep and has_few_positions(x, weight, options):
        y = (conv_by_patches(x, weight, options) * scale[:, None, None]).add_(shift[:, None, None])
        return onednn.with_sum_and_relu(y, plus, relu)
    made = kept_product(weight, scale, x, options) if keep else product(weight, scale, x.dtype)
    return onednn.convolution(x, made, shift.to(x.dtype), options, relu, plus, overwrite)


def backward_pass(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    positive: Tensor | None,
    options: Options,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """The `wanted` gradients, of x, weight, scale, shift, plus, from that of y; `positive` is y if a ReLU made it."""
    of_x, of_weight, of_scale, of_shift, of_plus = wanted
    if positive is not None:
        grad = torch.ops.aten.threshold_backward(grad, positive, 0)
    grad_x = grad_weight = grad_scale = None
    if of_scale or grad.numel() >= weight.numel() or grad.dtype != scale.dtype:
        made = product(weight, scale, x.dtype)
        grad_x, grad_product = conv_gradients(grad, x, made, options, of_x, of_weight or of_scale)
        if of_scale:
            grad_scale = (grad_product.to(scale.dtype) * weight).sum((1, 2, 3))
        if of_weight:
            grad_weight = (grad_product * scale[:, None, None, None]).to(weight.dtype)
    elif of_x or of_weight:  # the gradient of conv(x) is the smaller one to scale
        grad_x, grad_weight = conv_gradients(grad * scale[:, None, None], x, weight, options, of_x, of_weight)
    grad_shift = grad.sum((0, 2, 3)).to(scale.dtype) if of_shift else None
    return [grad_x, grad_weight, grad_scale, grad_shift, grad if of_plus else None]
