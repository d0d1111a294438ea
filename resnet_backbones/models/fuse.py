"""A convolution and the fixed norm after it as one convolution: norm(conv(x)) = conv(x, weight * scale, shift).

`fold_norms(model)` is for training, `fuse(model)` for inference. Both work on backbones alone and inside any detector;
modules that they do not know stay unchanged.
"""

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.models.densenet import _DenseLayer
from torchvision.models.googlenet import BasicConv2d

from ..errors import UserError
from .layers import FrozenBatchNorm2d, scale_and_shift

# Which norm follows which convolution in blocks that are not ours; ours declare it in their `conv_norms`.
CONV_NORMS = {BasicConv2d: (("conv", "bn"),), _DenseLayer: (("conv1", "norm2"),)}


class FoldedConv2d(nn.Conv2d):
    """conv(x, weight * scale, shift), with the scale and shift of the FrozenBatchNorm2d after it, at every call."""

    norm: tuple[FrozenBatchNorm2d]  # in a tuple, so that it is not registered as a child here, too

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = scale_and_shift(self.norm[0])
        weight = self.weight * scale[:, None, None, None]
        if self.bias is not None:
            shift = shift + self.bias * scale
        return self._conv_forward(x, weight.to(x.dtype), shift.to(x.dtype))


class FoldedNorm(FrozenBatchNorm2d):
    """The identity, in place of a norm that its `FoldedConv2d` has applied."""

    folded = True

    def forward(self, x: Tensor) -> Tensor:
        return x


class FusedNorm(nn.Identity):
    """In place of a norm whose weights are part of the convolution in front of it, and so cannot be trained."""

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            raise UserError("A fused model is for inference; train the model that it was made from.")
        return super().train(mode)


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every FrozenBatchNorm2d that follows a convolution into it, in place; returns `model`.

    The forward and backward passes are those of one convolution. Names, state_dict and what is trained stay the same,
    and so do the outputs, to rounding. Nothing is kept between calls: weights can be changed in any way. The
    FrozenBatchNorm2d of torchvision, detectron2 or DETR is replaced by ours, with the same buffers.
    """
    for parent, conv, norm in conv_norm_pairs(model):
        conv_module, norm_module = parent.get_submodule(conv), parent.get_submodule(norm)
        if is_foreign_frozen(norm_module):
            norm_module = as_ours(norm_module)
            parent.set_submodule(norm, norm_module)
        if type(norm_module) is FrozenBatchNorm2d:
            # The same objects under another class, so that hooks and references to them stay valid.
            conv_module.__class__, norm_module.__class__ = FoldedConv2d, FoldedNorm
            conv_module.norm = (norm_module,)
    return model


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference, with the norms multiplied into the convolutions in front of them once.

    FrozenBN (any library's), BN and SyncBN are fused, the last two with their running statistics. The outputs are the
    same, to rounding. The copy is in evaluation mode; `train()` on it raises `UserError`.
    """
    model = copy.deepcopy(model).eval()
    for parent, conv, norm in conv_norm_pairs(model):
        conv_module, norm_module = parent.get_submodule(conv), parent.get_submodule(norm)
        if getattr(norm_module, "running_var", None) is None:
            continue
        if is_foreign_frozen(norm_module):
            norm_module = as_ours(norm_module)
        scale, shift = scale_and_shift(norm_module)
        if conv_module.bias is not None:
            shift = shift + conv_module.bias * scale
        trained = conv_module.weight.requires_grad
        weight = conv_module.weight * scale[:, None, None, None]
        conv_module.__class__ = nn.Conv2d  # of a FoldedConv2d
        conv_module.__dict__.pop("norm", None)
        conv_module.weight = nn.Parameter(weight.to(conv_module.weight.dtype), trained)
        conv_module.bias = nn.Parameter(shift.to(conv_module.weight.dtype), trained)
        parent.set_submodule(norm, FusedNorm())
    return model


def conv_norm_pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, name of a convolution, name of the norm that alone takes its output), each once."""
    for parent in list(model.modules()):
        if isinstance(parent, nn.Sequential):
            names = [name for name, _ in parent.named_children()]
            pairs = itertools.pairwise(names)
        else:
            pairs = getattr(parent, "conv_norms", CONV_NORMS.get(type(parent), ()))
        for conv, norm in pairs:
            module = parent.get_submodule(conv)
            if isinstance(module, nn.Sequential):  # such as a stem of several convolutions
                conv = ".".join([conv, *[name for name, _ in module.named_children()][-1:]])
            if is_plain_conv(parent.get_submodule(conv)) and is_batch_norm(parent.get_submodule(norm)):
                yield parent, conv, norm


def is_plain_conv(module: nn.Module) -> bool:
    """Not a deformable, quantized or parametrized one, which are of other classes."""
    return type(module) in (nn.Conv2d, FoldedConv2d)


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)) or is_foreign_frozen(module)


def is_foreign_frozen(module: nn.Module) -> bool:
    """Another library's `FrozenBatchNorm2d`, such as torchvision's, or transformers' `DetrFrozenBatchNorm2d`."""
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    named = type(module).__name__.endswith("FrozenBatchNorm2d") and not isinstance(module, FrozenBatchNorm2d)
    return named and buffers == {"weight", "bias", "running_mean", "running_var"}


def as_ours(norm: nn.Module) -> FrozenBatchNorm2d:
    """Another library's `FrozenBatchNorm2d` as ours, with the same buffers. DETR's have a constant for `eps`."""
    ours = FrozenBatchNorm2d(len(norm.weight), getattr(norm, "eps", 1e-5))
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(ours, name, buffer)
    return ours.train(norm.training)
