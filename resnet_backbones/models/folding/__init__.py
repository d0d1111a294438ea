"""relu(conv(x, weight * scale) + shift + plus): a convolution and all that follows it in a residual block, as one."""

from .scaled_conv import scaled_conv

__all__ = ["scaled_conv"]
