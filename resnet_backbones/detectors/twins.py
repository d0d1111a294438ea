"""Functions that take the same arguments as their twins in the other head library, by construction."""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace


def same_arguments(twin: Callable) -> Callable[[Callable], Callable]:
    """Make a function of one namespace into one with the names and defaults of `twin`'s arguments."""
    signature = inspect.signature(twin)

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(SimpleNamespace(**bound.arguments))

        call.__signature__ = signature
        return call

    return decorate
