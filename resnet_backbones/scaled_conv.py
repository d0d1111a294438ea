"""The convolution conv(x, weight * scale) + shift, whose product is kept between calls where nothing trains it."""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN's convolution with a ReLU in the same pass over a weight in its own memory layout, which inductor calls, too.
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def scaled_conv(conv: nn.Conv2d, scale: Tensor, shift: Tensor, x: Tensor, relu: bool) -> Tensor:
    """conv(x) * scale + shift for per-channel `scale` and `shift` (C,), as one convolution; then a ReLU if asked for.

    Gradients go through the product to the weight, the scale and the shift. Where none is wanted on the CPU (a frozen
    stage, evaluation), the product is kept for the next call.
    """
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    options = conv.stride, conv.padding, conv.dilation, conv.groups
    if torch.is_grad_enabled() and (conv.weight.requires_grad or scale.requires_grad or shift.requires_grad):
        _kept.pop(conv, None)
        y = _ScaledConv.apply(x, conv.weight, scale, shift, *options)
        return F.relu_(y) if relu else y
    shift = shift.to(x.dtype)
    packed = ONEDNN and x.dtype == torch.float32 and x.numel() > 0 and not (x.requires_grad and torch.is_grad_enabled())
    keeps = _is_known(conv.weight)
    product = _kept_product(conv, scale, x, packed) if keeps else _product(conv.weight, scale, x.dtype)
    if keeps and packed:
        stride, padding, dilation, groups = options
        unary = "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(
            x, product, shift, padding, stride, dilation, groups, unary, [], ""
        )
    y = F.conv2d(x, product, shift, *options)
    return F.relu_(y) if relu else y


class _ScaledConv(torch.autograd.Function):
    """Keeps no product for the backward pass but makes it again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, scale, shift, stride, padding, dilation, groups):
        return F.conv2d(x, _product(weight, scale, x.dtype), shift.to(x.dtype), stride, padding, dilation, groups)

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
            *(
                grad,
                x,
                _product(weight, scale, x.dtype),
                [len(scale)],
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                groups,
            ),
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


def _product(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """In at least float32, then in `dtype`."""
    return (weight * scale[:, None, None, None]).to(dtype)


# Of each convolution: its weight with version and sum, the scale, whether packed, and the product. Beside the modules,
# so that it is neither copied nor saved with them.
_kept: WeakKeyDictionary[nn.Conv2d, tuple[Tensor, int, float, Tensor, bool, Tensor]] = WeakKeyDictionary()


def _kept_product(conv: nn.Conv2d, scale: Tensor, x: Tensor, packed: bool) -> Tensor:
    """The kept product, in the dtype of x, if weight and scale are what it was made of, else a new one.

    A weight is the same in the same memory (which is held, lest another takes its place), of the same version, the
    count that every operation in place raises, and of the same sum, which tells of what was written through `.data`.
    """
    with torch.inference_mode(False), torch.no_grad():
        weight, version, total = conv.weight.detach(), conv.weight._version, conv.weight.sum().item()
        if (kept := _kept.get(conv)) is not None:
            kept_weight, kept_version, kept_total, kept_scale, kept_packed, product = kept
            same_memory = (weight.data_ptr(), weight.stride()) == (kept_weight.data_ptr(), kept_weight.stride())
            same_kind = weight.dtype == kept_weight.dtype and (packed, x.dtype) == (kept_packed, product.dtype)
            same_content = version == kept_version and total == kept_total and torch.equal(scale, kept_scale)
            if same_memory and same_kind and same_content:
                return product
        product = _product(weight, scale, x.dtype)
        if packed:
            options = conv.padding, conv.stride, conv.dilation, conv.groups
            product = torch.ops.mkldnn._reorder_convolution_weight(product, *options, x.shape)
        _kept[conv] = weight, version, total, scale.clone(), packed, product
        return product


def _is_known(weight: Tensor) -> bool:
    """Whether `weight` lies on the CPU and counts its versions."""
    inside = torch._C._are_functorch_transforms_active()
    return weight.device.type == "cpu" and not weight.is_inference() and not inside
