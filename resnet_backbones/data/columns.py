"""Columns of records as in real files: numbers and ids of any type, with null for absent."""

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np


def numbers(values: Sequence[Any]) -> np.ndarray:
    """(N,), float64; NaN where a value is not a number. Text such as "12" counts as one."""
    try:
        return np.array(values, np.float64).reshape(len(values))  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        return np.array([_number(value) for value in values], np.float64)


def boxes(values: Sequence[Any]) -> np.ndarray:
    """(N, 4), float64; a row of NaN where a value is not four numbers."""
    if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
        return numbers(list(itertools.chain.from_iterable(values))).reshape(-1, 4)
    rows = [value if isinstance(value, (list, tuple)) and len(value) == 4 else (None,) * 4 for value in values]
    return numbers([v for row in rows for v in row]).reshape(-1, 4)


def ids(values: Sequence[Any]) -> list[Hashable]:
    """Whole numbers as int, text as it is, and None for what cannot be an id."""
    if set(map(type, values)) <= {int, str}:
        return list(values)
    return [_id(value) for value in values]


def positions(known: Sequence[Hashable], wanted: Sequence[Any]) -> np.ndarray:
    """(N,): where each id of `wanted` is in `known`, -1 where it is not.

    Ids match even if one is a number and the other text.
    """
    index = {value: k for k, value in enumerate(known)}
    found = np.array(list(map(index.get, ids(wanted), itertools.repeat(-1))), np.int64)
    missing = np.flatnonzero(found < 0)
    if len(missing):
        by_text = {str(value): k for value, k in index.items()}
        for j in missing.tolist():
            found[j] = by_text.get(str(wanted[j]), -1) if wanted[j] is not None else -1
    return found


def as_array(values: Sequence[Hashable]) -> np.ndarray:
    """(N,): ids as an array of integers or of text if all are, which loader workers share, otherwise of objects."""
    kinds = set(map(type, values))
    if kinds <= {int} and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    return np.array(values, np.str_ if kinds == {str} else object)


def flags(values: Sequence[Any]) -> np.ndarray:
    """(N,), int8: 1 for true, "true" and numbers other than 0, 0 for null and the rest."""
    if set(map(type, values)) <= {int, bool}:
        return np.array(values, bool).astype(np.int8)
    words = [isinstance(value, str) and value.strip().lower() == "true" for value in values]
    return (np.array(words, bool) | (np.nan_to_num(numbers(values)) != 0)).astype(np.int8)


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
    except (TypeError, ValueError):
        return float("nan")


def _id(value: Any) -> Hashable:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None
