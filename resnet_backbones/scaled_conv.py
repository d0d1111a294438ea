"""relu(conv(x, weight * scale) + shift) as one convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .kept_products import forget, kept_product, product

# oneDNN's convolution with the ReLU in the same pass, which inductor calls, too.
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
Options = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


def scaled_conv(conv: nn.Conv2d, scale: Tensor, shift: Tensor, x: Tensor, relu: bool) -> Tensor:
    """conv(x) * scale + shift for per-channel `scale` and `shift` (C,), as one convolution; then a ReLU if asked for.

    Gradients go through the product to the weight, the scale and the shift. Where none is wanted on the CPU (a frozen
    stage, evaluation), the product is kept for the next call.
    """
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    options = conv.stride, conv.padding, conv.dilation, conv.groups
    if torch.compiler.is_compiling():
        y = F.conv2d(x, product(conv.weight, scale, x.dtype), shift.to(x.dtype), *options)
        return F.relu(y) if relu else y
    if torch.is_grad_enabled() and any(t.requires_grad for t in (conv.weight, scale, shift)):
        forget(conv)
        return _ScaledConv.apply(x, conv.weight, scale, shift, options, relu)
    weight = kept_product(conv, scale, x, packed=_is_for_onednn(x))
    return _conv(x, weight, shift.to(x.dtype), options, relu)


def _conv(x: Tensor, weight: Tensor, shift: Tensor, options: Options, relu: bool) -> Tensor:
    if _is_for_onednn(x):
        stride, padding, dilation, groups = options
        unary = "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, shift, padding, stride, dilation, groups, unary, [], ""
        )
    y = F.conv2d(x, weight, shift, *options)
    return F.relu_(y) if relu else y


def _is_for_onednn(x: Tensor) -> bool:
    """Whether a call that autograd, torch.func and dispatch modes (counters of FLOPs) do not know of will do."""
    unseen = not torch._C._are_functorch_transforms_active() and _get_current_dispatch_mode() is None
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return ONEDNN and plain and unseen and not (x.requires_grad and torch.is_grad_enabled())


class _ScaledConv(torch.autograd.Function):
    """Keeps no product for the backward pass but makes it again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, scale, shift, options, relu):
        return _conv(x, product(weight, scale, x.dtype), shift.to(x.dtype), options, relu)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, scale, _, ctx.options, relu = inputs
        ctx.save_for_backward(x, weight, scale, output if relu else None)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale, positive = ctx.saved_tensors
        of_x, of_weight, of_scale, of_shift = ctx.needs_input_grad[:4]
        if positive is not None:
            grad = torch.ops.aten.threshold_backward(grad, positive, 0)
        of_product = of_weight or of_scale
        by_matmul = of_product and _is_matmul(weight, ctx.options, x, grad)
        stride, padding, dilation, groups = ctx.options
        grad_x, grad_product, grad_shift = torch.ops.aten.convolution_backward(
            *(grad, x, product(weight, scale, x.dtype), [len(scale)], stride, padding, dilation, False, [0, 0], groups),
            (of_x, of_product and not by_matmul, of_shift),
        )
        if by_matmul:
            grad_product = (_vectors(grad).T @ _vectors(x))[:, :, None, None]
        grad_weight = grad_scale = None
        if of_scale:
            grad_scale = (grad_product.to(scale.dtype) * weight).sum((1, 2, 3))
        if of_weight:
            scale = scale[:, None, None, None]
            in_place = grad_product.dtype == scale.dtype and not torch.is_grad_enabled()
            grad_weight = (grad_product.mul_(scale) if in_place else grad_product * scale).to(weight.dtype)
        return grad_x, grad_weight, grad_scale, grad_shift, None, None


def _is_matmul(weight: Tensor, options: Options, x: Tensor, grad: Tensor) -> bool:
    """Whether the convolution multiplies vectors that lie in memory as such: 1x1, dense, in channels_last.

    The product of matrices is then up to twice as fast on the CPU as the gradient of such a convolution.
    """
    dense = weight.shape[2:] == (1, 1) and options == ((1, 1), (0, 0), (1, 1), 1)
    in_vectors = all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, grad))
    return x.device.type == "cpu" and dense and in_vectors


def _vectors(x: Tensor) -> Tensor:
    """From (N, C, H, W) to (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)
