"""oneDNN's convolution with what follows it in the same pass, which torch.compile's inductor calls, too."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
Options = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


def takes(x: Tensor) -> bool:
    """Whether it is an image of floats on the CPU, where the call pays."""
    return AVAILABLE and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0


def is_usable(x: Tensor, plus: Tensor | None = None) -> bool:
    """Whether a call that autograd, torch.func and dispatch modes (counters of FLOPs) do not know of will do."""
    unseen = not torch._C._are_functorch_transforms_active() and _get_current_dispatch_mode() is None
    return takes(x) and unseen and not wants_gradient(x, plus)


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def with_sum_and_relu(y: Tensor, plus: Tensor | None, relu: bool) -> Tensor:
    """y + plus and through a ReLU if asked for, each written over y."""
    y = y if plus is None else y.add_(plus)
    return F.relu_(y) if relu else y


def convolution(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    options: Options,
    relu: bool,
    plus: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """conv(x, weight) + shift, + plus and through a ReLU if asked for; in one pass where oneDNN is usable.

    `weight` may be in the layout that `packed` gives it. With `overwrite` the result may be written over `plus`, which
    saves a third of the traffic.
    """
    if plus is not None and not is_usable(x, plus):
        return with_sum_and_relu(convolution(x, weight, shift, options, relu=False), plus, relu)
    if not is_usable(x):
        return with_sum_and_relu(F.conv2d(x, weight, shift, *options), plus, relu)
    stride, padding, dilation, groups = options
    options = padding, stride, dilation, groups
    unary = "relu" if relu else "none", [], ""
    if plus is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, shift, *options, *unary)
    if overwrite and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, plus)):
        return torch.ops.mkldnn._convolution_pointwise_.binary(plus, x, weight, shift, *options, "add", 1, *unary)
    return torch.ops.mkldnn._convolution_pointwise.binary(x, plus, weight, shift, *options, "add", 1, *unary)


def packed(weight: Tensor, options: Options, size: torch.Size) -> Tensor:
    """`weight` in oneDNN's own layout for inputs of that size, which may be slow for inputs of others."""
    stride, padding, dilation, groups = options
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, size)
