"""Building a network without the random numbers that a checkpoint then overwrites."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# `init` hands these to a mode whole, the others as what they do to the tensor.
RANDOM = {Tensor.uniform_, Tensor.normal_, init.uniform_, init.normal_, init.trunc_normal_, init.kaiming_uniform_}


class SkipRandomInit(TorchFunctionMode):
    """`with SkipRandomInit():` random initialisation leaves tensors as they come from memory, of any content.

    For networks all of whose parameters a checkpoint then gives. Constants are set as ever: of norms, biases, counters.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
