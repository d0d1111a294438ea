"""The layers every backbone is made of: feature shapes, normalisation, freezing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError, unknown
from .sync_bn import SyncBatchNorm


class ShapeSpec(NamedTuple):
    """What heads need to know of a feature map (N, channels, H / stride, W / stride)."""

    channels: int
    stride: int


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and fixed affine: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Shape (N, C, H, W) to the same, in the input's dtype. The four parameters are buffers named as in
    `nn.BatchNorm2d`, so checkpoints go both ways. They stay in at least float32 under `.half()` and `.bfloat16()`
    because a small `running_var` underflows in 16 bits; only the resulting scale and shift are cast.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad and x.dtype != torch.float64:  # one fused kernel, that of nn.BatchNorm2d
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # With gradients F.batch_norm would keep x for those of weight and bias, which nobody needs.
        scale, shift = scale_and_shift(self)
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def _apply(self, fn, recurse: bool = True):
        def at_least_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.half, torch.bfloat16) else moved

        return super()._apply(at_least_float32, recurse)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(prefix + "num_batches_tracked", None)  # nn.BatchNorm2d's counter of training steps
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm2d, SyncBatchNorm included, in `module` (or itself) by its frozen form."""
        return _replace(module, nn.BatchNorm2d, cls)

    @classmethod
    def revert(cls, module: nn.Module) -> nn.Module:
        """Replace every FrozenBatchNorm2d in `module` (or itself) by a trainable `nn.BatchNorm2d`."""
        return _replace(module, cls, nn.BatchNorm2d)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Per channel, in at least float32, what `norm` with its running statistics does: y = x * scale + shift."""
    mean, var = norm.running_mean, norm.running_var
    if var.dtype in (torch.half, torch.bfloat16):
        var = var.float()
    scale = (var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    return scale, -mean * scale if norm.bias is None else norm.bias - mean * scale


def _replace(module: nn.Module, old: type | tuple[type, ...], new: type) -> nn.Module:
    if isinstance(module, old):
        with module.running_var.device:
            norm = new(module.num_features, eps=module.eps)
        norm.load_state_dict(module.state_dict(), strict=False)
        return norm.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, old, new))
    return module


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, the setting of arXiv 1803.08494 §4."""
    if channels % 32:
        raise UserError(f"GN needs channels in multiples of its 32 groups, got {channels}; choose another norm.")
    return nn.GroupNorm(32, channels)


NORMS = {
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "SyncBN": SyncBatchNorm,
    "GN": group_norm,
    "none": lambda channels: nn.Identity(),
}


def get_norm(norm: str, channels: int) -> nn.Module:
    """The normalisation layer called `norm` (a key of `NORMS`) for `channels` channels."""
    if norm not in NORMS:
        raise UserError(unknown("norm", norm, NORMS))
    return NORMS[norm](channels)


def conv2d(in_channels: int, out_channels: int, kernel_size: int, norm: str, **options) -> nn.Conv2d:
    """A convolution of "same" padding that is followed by `norm`, and so has a bias only where norm is "none"."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm == "none", **options)


def freeze(module: nn.Module) -> nn.Module:
    """Stop all training of `module`: no gradients, and BN made FrozenBN so that no later `.train()` thaws it."""
    return FrozenBatchNorm2d.convert(module).requires_grad_(False)


def freeze_stages(backbone: nn.Module, freeze_at: int) -> None:
    """Freeze the first `freeze_at` of `backbone.stages`: 0 nothing, 1 the stem, 2 stem and res2, … 5 everything.

    `backbone.stages` maps "stem", "res2" … "res5" to the names of their submodules, from the input on.
    """
    if freeze_at not in range(6):
        raise UserError(f"freeze_at is {freeze_at}; it must be 0 (nothing), 1 (stem), 2 (stem and res2) … 5 (all).")
    for names in list(backbone.stages.values())[:freeze_at]:
        for name in names:
            backbone.set_submodule(name, freeze(backbone.get_submodule(name)))


def split_last_stage(backbone: nn.Module) -> nn.Module:
    """Take the last of `backbone.stages` out of it: the backbone ends a stage earlier, the stage is returned."""
    feature, names = backbone.stages.popitem()
    backbone.out_features.remove(feature)
    modules = []
    for name in names:
        parent, _, child = name.rpartition(".")
        modules.append(backbone.get_submodule(name))
        delattr(backbone.get_submodule(parent), child)
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def check_out_features(out_features: Sequence[str], valid: Sequence[str]) -> list[str]:
    """The wanted features in the network's own order. Raises `UserError` for an unknown one or none."""
    for feature in out_features:
        if feature not in valid:
            raise UserError(unknown("feature", feature, valid))
    if not out_features:
        raise UserError(f"out_features is empty; choose from {', '.join(valid)}.")
    return [feature for feature in valid if feature in out_features]


def with_gradient_in_its_format(x: Tensor) -> Tensor:
    """A feature whose gradient comes in the feature's memory format, whatever a loss makes of it.

    Gradients of several formats are added an element at a time, which costs up to a tenth of a training step.
    """
    if torch.compiler.is_compiling() or not x.requires_grad or not x.is_contiguous(memory_format=torch.channels_last):
        return x
    feature = torch.ops.aten.alias(x)  # view_as would give a batch of one other strides, and the FPN another format
    feature.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return feature


def recompute(stage: nn.Module, x: Tensor) -> Tensor:
    """stage(x) that keeps no activations: they are computed again in the backward pass, BN's statistics only once."""
    return checkpoint(stage, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _still_statistics(stage)))


@contextmanager
def _still_statistics(stage: nn.Module) -> Iterator[None]:
    norms = [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [(m.momentum, m.num_batches_tracked) for m in norms]
    for m in norms:
        m.momentum, m.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for m, (momentum, count) in zip(norms, kept, strict=True):
            m.momentum, m.num_batches_tracked = momentum, count
