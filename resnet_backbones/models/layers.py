"""The layers every backbone is made of: convolutions and normalization."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import UserError, unknown


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and affine: y = (x - mean) / sqrt(var + eps) * weight + bias.

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
        scale, shift = scale_and_shift(self)
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def at_least_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.half, torch.bfloat16) else moved

        return super()._apply(at_least_float32, recurse)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # nn.BatchNorm2d's counter of training steps
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm2d and SyncBatchNorm in `module` (or itself) by its frozen form."""
        return _replace(module, (nn.BatchNorm2d, nn.SyncBatchNorm), cls)

    @classmethod
    def revert(cls, module: nn.Module) -> nn.Module:
        """Replace every FrozenBatchNorm2d in `module` (or itself) by a trainable `nn.BatchNorm2d`.

        Raises `UserError` after `fold_norms`, whose convolutions already apply the norms.
        """
        return _replace(module, cls, nn.BatchNorm2d)


def has_live_batch_norm(model: nn.Module) -> bool:
    """Whether a norm of `model` uses batch statistics in training."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(C,) each, what `norm` with its running statistics computes: y = x * scale + shift."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _replace(module: nn.Module, old: type | tuple[type, ...], new: type) -> nn.Module:
    if isinstance(module, old):
        if getattr(module, "folded", False):
            raise UserError("The norms are folded into their convolutions; change norms before fold_norms(model).")
        with module.running_var.device:
            norm = new(module.num_features, eps=module.eps)
        norm = norm.to(module.running_var.dtype)
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
    "SyncBN": nn.SyncBatchNorm,
    "GN": group_norm,
    "none": lambda channels: nn.Identity(),
}


def get_norm(norm: str, channels: int) -> nn.Module:
    """The normalization layer called `norm` (a key of `NORMS`) for `channels` channels."""
    if norm not in NORMS:
        raise UserError(unknown("norm", norm, NORMS))
    return NORMS[norm](channels)


def conv2d(in_channels: int, out_channels: int, kernel_size: int, norm: str, **options) -> nn.Conv2d:
    """A convolution with "same" padding that is followed by `norm`, and so has a bias only if norm is "none"."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm == "none", **options)


def init_weights(module: nn.Module) -> None:
    """He initialization, fan-out (arXiv 1502.01852 §2.2), for a convolution; norms keep weight 1 and bias 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
