"""A convolution and the norm behind it, applied as one convolution where the norm is fixed."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .folding import scaled_conv
from .folding.onednn import wants_gradient, with_sum_and_relu
from .layers import FrozenBatchNorm2d, scale_and_shift
from .sync_bn import SyncBatchNorm


def conv_norm(
    conv: nn.Module,
    norm: nn.Module,
    x: Tensor,
    relu: bool = False,
    plus: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """norm(conv(x)), with `plus` added and with `relu` behind it: relu(norm(conv(x)) + plus).

    Where `norm` is y = x * scale + shift, all are one convolution conv(x, weight * scale, shift). That is FrozenBN, and
    BN or SyncBN in evaluation. Gradients go through the product to all that wants them.

    With `overwrite` the result may take the place of `plus` in memory. What has hooks, is parametrised or traced is
    called as it is.
    """
    if not is_called(conv) and not is_called(norm) and not _is_traced(x):
        if isinstance(conv, ConvNorms) and plus is None:
            return _chain([*conv, norm, *([nn.ReLU(inplace=True)] if relu else [])], x)
        if _is_plain(conv) and _is_fixed(norm) and (torch.compiler.is_compiling() or _pays(conv, norm, x)):
            return scaled_conv(conv, *scale_and_shift(norm), x.to(_autocast_dtype(x) or x.dtype), relu, plus, overwrite)
    return with_sum_and_relu(norm(conv(x)), plus, relu)


class ConvNorms(nn.Sequential):
    """nn.Sequential with each convolution and the norm behind it applied as one."""

    def forward(self, x: Tensor) -> Tensor:
        return _chain(self, x)


def _chain(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    rest = list(modules)
    while rest:
        module = rest.pop(0)
        followed = isinstance(module, nn.Conv2d) and rest and isinstance(rest[0], NORMS)
        if followed:
            norm, relu = rest.pop(0), bool(rest) and isinstance(rest[0], nn.ReLU)
            x = conv_norm(module, norm, x, relu)
            rest = rest[relu:]
        else:
            x = module(x)
    return x


def in_fastest_format(images: Tensor, net: nn.Module) -> Tensor:
    """`images`, whose format the whole pass follows: channels_last on the CPU if all norms are fixed, else as they are.

    PyTorch's BN and GN are slower in it, and its BN ten times less exact; so are the gradients of grouped convolutions
    slower.
    """
    if images.device.type != "cpu" or images.dim() != 4:
        return images
    grouped_in_training = False
    for module in net.modules():
        if isinstance(module, nn.GroupNorm) or (isinstance(module, NORMS) and not _is_fixed(module)):
            return images
        grouped_in_training |= isinstance(module, nn.Conv2d) and module.groups > 1 and torch.is_grad_enabled()
    return images if grouped_in_training else images.contiguous(memory_format=torch.channels_last)


NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm)


def _is_fixed(norm: nn.Module) -> bool:
    if type(norm) is FrozenBatchNorm2d:
        return True
    return type(norm) in NORMS and not norm.training and norm.running_mean is not None and norm.running_var is not None


def _is_plain(conv: nn.Module) -> bool:
    """Not deformable, quantised, parametrised or sharded, all of which have other classes."""
    zeros = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and type(conv.weight) in (Tensor, nn.Parameter)


def is_called(module: nn.Module) -> bool:
    """Whether somebody wants to know of, or replaces, the calls of `module`."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or _has_any_global_hook() or "forward" in vars(module)


def is_identity(module: nn.Module) -> bool:
    """Whether `module` may be left out."""
    return type(module) is nn.Identity and not is_called(module)


def _is_traced(x: Tensor) -> bool:
    """Whether the calls are written down for others, who know no operators of ours."""
    if type(x) not in (Tensor, nn.Parameter) or x.is_meta:  # such as torch.fx's proxy
        return True
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _pays(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> bool:
    """Whether the product is in floats that hold it, and takes less time than the norm.

    float16 would lose the small ones of its numbers. Without gradients a GPU is left the one kernel of a norm: cuDNN
    takes one to add the shift, too.
    """
    autocast = _autocast_dtype(x)
    if autocast is None and x.dtype != conv.weight.dtype:
        return False
    if (autocast or x.dtype) == torch.half or (autocast and torch.double in (x.dtype, conv.weight.dtype)):
        return False
    trains = wants_gradient(*conv.parameters(), *norm.parameters())
    return x.dim() == 4 and (trains or x.device.type == "cpu")


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast makes of x in front of a convolution, if anything."""
    kind = x.device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None
