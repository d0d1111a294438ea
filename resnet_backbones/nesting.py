"""How large nested values from a file are once every shared part is written out: small files may mean endless ones."""

import math
from collections.abc import Callable, Iterable
from typing import Any

DEEPEST = 64  # levels; Python's own functions give up at some hundreds


def expanded_size(value: Any, children: Callable[[Any], Iterable]) -> float:
    """The number of values in `value` and below, shared ones as often as they are reached; infinite for a cycle.

    Args:
        children: those of a value, none for a leaf.

    Raises `ValueError` where they are nested deeper than 64 levels.
    """
    known: dict[int, tuple[float, int]] = {}  # size and height

    def measure(node: Any, depth: int) -> tuple[float, int]:
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        if id(node) not in known:
            known[id(node)] = math.inf, 0  # until it is known: met again, it holds itself
            below = [measure(child, depth + 1) for child in children(node)]
            known[id(node)] = 1 + sum(size for size, _ in below), 1 + max((height for _, height in below), default=0)
        size, height = known[id(node)]
        if depth + height > DEEPEST + 1:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        return size, height

    return measure(value, 0)[0]


def nested_children(value: Any) -> Iterable:
    """The values of a dict, list or tuple; none of anything else."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()
