"""A convolution and the norm behind it, applied as one convolution where the norm is fixed."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import FrozenBatchNorm2d, scale_and_shift


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)); one convolution conv(x, weight * scale, shift) where `norm` is y = x * scale + shift.

    That is FrozenBN, and BN or SyncBN in evaluation. Gradients go through the product to all that wants them. Nothing
    is kept from call to call, so that no weights can be out of date: the product is made anew, where it is smaller than
    the result that `norm` would otherwise pass over, so it costs next to nothing.

    What has hooks, is parametrised, traced or compiled is called as it is (a compiler fuses by itself).
    """
    if _is_traced(x) or _is_called(conv) or _is_called(norm):
        return norm(conv(x))
    if isinstance(conv, ConvNorms):
        return _chain([*conv, norm], x)
    if not (_is_plain(conv) and _is_fixed(norm) and _pays(conv, norm, x)):
        return norm(conv(x))
    x = x.to(_autocast_dtype(x) or x.dtype)
    scale, shift = scale_and_shift(norm)
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return _ScaledConv.apply(x, conv.weight, scale, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class ConvNorms(nn.Sequential):
    """nn.Sequential with each convolution and the norm behind it applied as one."""

    def forward(self, x: Tensor) -> Tensor:
        return _chain(self, x)


def _chain(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    rest = list(modules)
    while rest:
        module = rest.pop(0)
        followed = isinstance(module, nn.Conv2d) and rest and isinstance(rest[0], NORMS)
        x = conv_norm(module, rest.pop(0), x) if followed else module(x)
    return x


class _ScaledConv(torch.autograd.Function):
    """conv(x, weight * scale) + shift, that keeps no product for the backward pass but makes it again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, scale, shift, stride, padding, dilation, groups):
        return F.conv2d(x, _product(weight, scale, x), shift.to(x.dtype), stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, scale, _, *ctx.options = inputs
        ctx.save_for_backward(x, weight, scale)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        of_x, of_weight, of_scale, of_shift = ctx.needs_input_grad[:4]
        stride, padding, dilation, groups = ctx.options
        grad_x, grad_product, grad_shift = torch.ops.aten.convolution_backward(
            *(grad, x, _product(weight, scale, x), [len(scale)], stride, padding, dilation, False, [0, 0], groups),
            (of_x, of_weight or of_scale, of_shift),
        )
        grad_weight = grad_scale = None
        if of_scale:
            grad_scale = (grad_product.to(scale.dtype) * weight).sum((1, 2, 3))
        if of_weight:
            scale = scale[:, None, None, None]
            in_place = grad_product.dtype == scale.dtype and not torch.is_grad_enabled()
            grad_weight = (grad_product.mul_(scale) if in_place else grad_product * scale).to(weight.dtype)
        return grad_x, grad_weight, grad_scale, grad_shift, None, None, None, None


def _product(weight: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """In at least float32, then in the dtype of x."""
    return (weight * scale[:, None, None, None]).to(x.dtype)


NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def _is_fixed(norm: nn.Module) -> bool:
    if type(norm) is FrozenBatchNorm2d:
        return True
    return type(norm) in NORMS and not norm.training and norm.running_mean is not None and norm.running_var is not None


def _is_plain(conv: nn.Module) -> bool:
    """Not deformable, quantised or parametrised, all of which are other classes."""
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _is_called(module: nn.Module) -> bool:
    """Whether somebody wants to know of, or replaces, the calls of `module`."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def _is_traced(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not isinstance(x, Tensor)  # torch.fx's proxy


def _pays(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> bool:
    """Whether the product is smaller than the result, and is in floats that hold it.

    float16 would lose the small ones of its numbers. Without gradients a GPU is left the one kernel of a norm: the
    product takes several, and small images wait for kernels to start.
    """
    autocast = _autocast_dtype(x)
    if autocast is None and x.dtype != conv.weight.dtype:
        return False
    if (autocast or x.dtype) == torch.half or (autocast and torch.double in (x.dtype, conv.weight.dtype)):
        return False
    if x.dim() != 4:
        return False
    positions = x.shape[0] * (x.shape[2] // conv.stride[0]) * (x.shape[3] // conv.stride[1])
    if positions < conv.weight[0].numel():
        return False
    wanted = (t for t in (x, conv.weight, conv.bias, norm.weight, norm.bias) if t is not None and t.requires_grad)
    return x.device.type == "cpu" or (torch.is_grad_enabled() and any(True for _ in wanted))


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast makes of x in front of a convolution, if anything."""
    kind = x.device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None
