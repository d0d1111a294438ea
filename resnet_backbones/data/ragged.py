"""Strings and lists of numbers in single arrays, which loader workers share. They would copy Python objects."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np


class Ragged:
    """Rows of different lengths, concatenated into one array: row k is `values[ends[k - 1]:ends[k]]`."""

    def __init__(self, values: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.ends = values, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, k: int) -> np.ndarray:
        return self.values[self.ends[k - 1] if k else 0 : self.ends[k]]

    def tolist(self) -> list[list]:
        """All rows as lists, much faster than one by one."""
        values, ends = self.values.tolist(), self.ends.tolist()
        return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ends, prepend=0)


def pack_strings(strings: Iterable[bytes]) -> Ragged:
    """Row k holds the bytes of string k, uint8."""
    strings = list(strings)
    return Ragged(np.frombuffer(b"".join(strings), np.uint8), np.cumsum([len(s) for s in strings], dtype=np.int64))


def pack_numbers(lists: Sequence[Sequence[float]]) -> Ragged:
    """Row k holds the numbers of list k, float64. Raises what float() raises if an entry is not a number."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    values = np.fromiter(itertools.chain.from_iterable(lists), np.float64, int(lengths.sum()))
    return Ragged(values, np.cumsum(lengths))
