"""relu(conv(x, weight * scale) + shift + plus) as one convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import onednn
from .kept_products import forget, product
from .operators import compiled_conv
from .passes import backward_pass, forward_pass


def scaled_conv(
    conv: nn.Conv2d,
    scale: Tensor,
    shift: Tensor,
    x: Tensor,
    relu: bool = False,
    plus: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """conv(x) * scale + shift + plus for per-channel `scale` and `shift` (C,); then a ReLU if asked for.

    Gradients go through the product to the weight, the scale and the shift. Where none is wanted on the CPU (a frozen
    stage, evaluation), the product is kept for the next call. With `overwrite` the result may take the place of `plus`
    in memory.
    """
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    options = conv.stride, conv.padding, conv.dilation, conv.groups
    trains = onednn.wants_gradient(conv.weight, scale, shift)
    if torch.compiler.is_compiling():
        if onednn.takes(x):
            return compiled_conv(x, conv.weight, scale, shift, plus, options, relu, not trains, overwrite)
        y = F.conv2d(x, product(conv.weight, scale, x.dtype), shift.to(x.dtype), *options)
        return onednn.with_sum_and_relu(y, plus, relu)
    if trains:
        forget(conv.weight)
        return _ScaledConv.apply(x, conv.weight, scale, shift, plus, options, relu)
    return forward_pass(x, conv.weight, scale, shift, plus, options, relu, True, overwrite)


class _ScaledConv(torch.autograd.Function):
    """Keeps no product for the backward pass but makes it again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, scale, shift, plus, options, relu):
        return forward_pass(x, weight, scale, shift, plus, options, relu, False)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, scale, _, _, ctx.options, relu = inputs
        ctx.save_for_backward(x, weight, scale, output if relu else None)

    @staticmethod
    def backward(ctx, grad):
        return *backward_pass(grad, *ctx.saved_tensors, ctx.options, ctx.needs_input_grad[:5]), None, None
