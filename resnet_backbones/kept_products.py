"""The products weight * scale of convolutions and their fixed norms, kept for as long as both are what they were."""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class Kept(NamedTuple):
    """A product and what it was made of. The weight is held, lest another tensor takes its place in memory."""

    weight: Tensor
    version: int
    total: float
    scale: Tensor
    packed: bool
    product: Tensor


# Beside the modules, so that it is neither copied nor saved with them.
_kept: WeakKeyDictionary[nn.Conv2d, Kept] = WeakKeyDictionary()


def product(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """weight * scale, made in at least float32, then in `dtype`."""
    return (weight * scale[:, None, None, None]).to(dtype)


def kept_product(conv: nn.Conv2d, scale: Tensor, x: Tensor, packed: bool) -> Tensor:
    """conv.weight * scale in the dtype of x, from an earlier call if that gave the same.

    A weight is the same in the same memory, of the same version, the count that every operation in place raises, and
    of the same sum, which tells of what was written through `.data` or numpy. The scale is compared number by number.

    Args:
        packed: the product in oneDNN's own memory layout, for inputs of the size of x above all.
    """
    if x.device.type != "cpu" or conv.weight.is_inference() or torch._C._are_functorch_transforms_active():
        return product(conv.weight, scale, x.dtype)
    with torch.inference_mode(False), torch.no_grad():
        weight, total = conv.weight.detach(), conv.weight.sum().item()
        kept = _kept.get(conv)
        same_kind = kept is not None and (kept.packed, kept.product.dtype) == (packed, x.dtype)
        if same_kind and _is_valid(kept, weight, total, scale):
            return kept.product
        made = product(weight, scale, x.dtype)
        if packed:
            options = conv.padding, conv.stride, conv.dilation, conv.groups
            made = torch.ops.mkldnn._reorder_convolution_weight(made, *options, x.shape)
        _kept[conv] = Kept(weight, weight._version, total, scale.clone(), packed, made)
        return made


def forget(conv: nn.Conv2d) -> None:
    _kept.pop(conv, None)


def _is_valid(kept: Kept, weight: Tensor, total: float, scale: Tensor) -> bool:
    same_memory = (weight.data_ptr(), weight.stride()) == (kept.weight.data_ptr(), kept.weight.stride())
    same_content = (weight.dtype, weight._version, total) == (kept.weight.dtype, kept.version, kept.total)
    return same_memory and same_content and torch.equal(scale, kept.scale)
