"""The passes of a scaled convolution as operators, which torch.compile calls as they are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .onednn import Options, wants_gradient
from .passes import backward_pass, forward_pass

CONV = "Tensor x, Tensor weight, Tensor scale, Tensor shift"
OPTIONS = "int[] stride, int[] padding, int[] dilation, int groups, bool relu"
library = torch.library.Library("resnet_backbones", "DEF")
library.define(f"scaled_conv({CONV}, Tensor? plus, {OPTIONS}, bool keep) -> Tensor")
library.define(f"scaled_conv_over(Tensor(a!) plus, {CONV}, {OPTIONS}) -> ()")
library.define(f"scaled_conv_backward(Tensor grad, Tensor y, {CONV}, {OPTIONS}, bool[] wanted) -> Tensor[]")


def compiled_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    plus: Tensor | None,
    options: Options,
    relu: bool,
    keep: bool,
    overwrite: bool,
) -> Tensor:
    """The forward pass in a graph of torch.compile, with the backward pass in its own."""
    if overwrite and keep and not wants_gradient(x, plus):
        torch.ops.resnet_backbones.scaled_conv_over(plus, x, weight, scale, shift, *options, relu)
        return plus
    return torch.ops.resnet_backbones.scaled_conv(x, weight, scale, shift, plus, *options, relu, keep)


def _options(stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Options:
    """From an operator's lists to a convolution's tuples."""
    return tuple(stride), tuple(padding), tuple(dilation), groups


def _scaled_conv(x, weight, scale, shift, plus, stride, padding, dilation, groups, relu, keep):
    options = _options(stride, padding, dilation, groups)
    return forward_pass(x, weight, scale, shift, plus, options, relu, keep)


def _scaled_conv_over(plus, x, weight, scale, shift, stride, padding, dilation, groups, relu):
    options = _options(stride, padding, dilation, groups)
    y = forward_pass(x, weight, scale, shift, plus, options, relu, keep=True, overwrite=True)
    if y is not plus:
        plus.copy_(y)


def _scaled_conv_backward(grad, y, x, weight, scale, shift, stride, padding, dilation, groups, relu, wanted):
    options = _options(stride, padding, dilation, groups)
    gradients = backward_pass(grad, x, weight, scale, y if relu else None, options, wanted)
    promised = _fake_backward(grad, y, x, weight, scale, shift, stride, padding, dilation, groups, relu, wanted)
    return [_as_promised(*pair, grad) for pair in zip(gradients, promised, strict=True)]


def _as_promised(gradient: Tensor | None, promised: Tensor, grad: Tensor) -> Tensor:
    """With the promised strides, and in memory of its own."""
    if gradient is None:
        return promised
    fine = gradient is not grad and gradient.stride() == promised.stride()
    return gradient if fine else promised.copy_(gradient)


def _setup_context(ctx, inputs, output):
    x, weight, scale, shift, _, *ctx.options, _ = inputs
    relu = ctx.options[-1]
    ctx.save_for_backward(output if relu else x, x, weight, scale, shift)


def _backward(ctx, grad):
    wanted = ctx.needs_input_grad[:5]
    gradients = torch.ops.resnet_backbones.scaled_conv_backward(grad, *ctx.saved_tensors, *ctx.options, wanted)
    return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), *[None] * 6


def _fake_backward(grad, y, x, weight, scale, shift, stride, padding, dilation, groups, relu, wanted):
    shapes = (x, weight, scale, shift, y)
    return [torch.empty_like(t) if want else grad.new_empty(0) for t, want in zip(shapes, wanted, strict=True)]


def _fake(x, weight, scale, shift, plus, stride, padding, dilation, groups, relu, keep):
    return F.conv2d(x, weight, shift, stride, padding, dilation, groups)


library.impl("scaled_conv", _scaled_conv, "CPU")
library.impl("scaled_conv_over", _scaled_conv_over, "CPU")
library.impl("scaled_conv_backward", _scaled_conv_backward, "CPU")
torch.library.register_fake("resnet_backbones::scaled_conv", _fake)
torch.library.register_fake("resnet_backbones::scaled_conv_over", lambda *_: None)
torch.library.register_fake("resnet_backbones::scaled_conv_backward", _fake_backward)
torch.library.register_autograd("resnet_backbones::scaled_conv", _backward, setup_context=_setup_context)
