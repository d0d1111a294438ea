"""The products weight * scale of convolutions and their fixed norms, kept for as long as both are what they were."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from . import onednn

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


class Kept(NamedTuple):
    """A product and what it was made of. The weight is held, lest another tensor takes its place in memory."""

    weight: Tensor
    version: int
    checksum: int
    scale: Tensor
    size: torch.Size | None  # of the last input, if oneDNN took it
    made: Tensor  # the product, or that in oneDNN's layout for `size`


_kept = WeakTensorKeyDictionary()  # of weights: neither copied nor saved with them, and gone when they are


def product(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """weight * scale, made in at least float32, then in `dtype`."""
    return (weight * scale[:, None, None, None]).to(dtype)


def kept_product(weight: Tensor, scale: Tensor, x: Tensor, options: onednn.Options) -> Tensor:
    """weight * scale in the dtype of x, from an earlier call if that gave the same.

    From the second x of a size on, oneDNN is given the product in its own layout for that size. Of one for another
    size it would make a copy in each call, at up to twice the time of the convolution.
    """
    if x.device.type != "cpu" or weight.is_inference() or torch._C._are_functorch_transforms_active():
        return product(weight, scale, x.dtype)
    size = x.shape if onednn.is_usable(x) else None
    kept = _find(weight, scale, x.dtype)
    again = kept is not None and kept.size == size
    if again and (size is None or kept.made.is_mkldnn):
        return kept.made
    with torch.inference_mode(False), torch.no_grad():
        if kept is None or kept.made.is_mkldnn:
            made = product(weight, scale, x.dtype)
            if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
                made = made.contiguous(memory_format=torch.channels_last)
        else:
            made = onednn.packed(kept.made, options, size) if again else kept.made
        if kept is None:
            kept = Kept(weight.detach(), weight._version, _checksum(weight), scale.clone(), size, made)
        _kept[weight] = kept._replace(size=size, made=made)
    return made


def forget(weight: Tensor) -> None:
    _kept.pop(weight, None)


def _find(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Kept | None:
    """What is kept of `weight` and `scale`, if both are still the same.

    A weight is the same in the same memory, of the same version, the count that every operation in place raises, and
    of the same checksum, which tells of what was written through `.data` or numpy. The scale is compared whole.
    """
    kept = _kept.get(weight)
    if kept is None or kept.made.dtype != dtype or not torch.equal(scale, kept.scale):
        return None
    same_memory = (weight.data_ptr(), weight.stride()) == (kept.weight.data_ptr(), kept.weight.stride())
    same_kind = (weight.dtype, weight._version) == (kept.weight.dtype, kept.version)
    return kept if same_memory and same_kind and _checksum(weight) == kept.checksum else None


def _checksum(weight: Tensor) -> int:
    """The sum of the numbers read as integers, modulo as many; equal for few of any two different weights."""
    integer = INTEGERS[weight.element_size()]
    return weight.detach().view(integer).sum(dtype=integer).item()
