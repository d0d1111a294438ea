"""Strings and lists of numbers in single arrays: worker processes share these, but would copy Python's objects."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np


class Rows:
    """Rows of unequal length, one after the other in one array; row k is `content[ends[k - 1]:ends[k]]`."""

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, k: int) -> np.ndarray:
        return self.content[self.ends[k - 1] if k else 0 : self.ends[k]]


def pack_strings(strings: Iterable[bytes]) -> Rows:
    """Row k holds the bytes of string k, uint8."""
    strings = list(strings)
    return Rows(np.frombuffer(b"".join(strings), np.uint8), np.cumsum([len(s) for s in strings], dtype=np.int64))


def pack_numbers(lists: Sequence[Sequence[float]]) -> Rows:
    """Row k holds the numbers of list k, float64. Raises what float() raises where they are no numbers."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    content = np.fromiter(itertools.chain.from_iterable(lists), np.float64, int(lengths.sum()))
    return Rows(content, np.cumsum(lengths))
