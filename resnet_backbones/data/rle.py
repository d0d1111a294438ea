"""COCO's compressed RLE: checked before pycocotools sees it, which reads and writes past the end of invalid ones.

A mask's runs, of alternating zeros and ones down its columns, are numbers written in groups of 5 bits, lowest first, as
the characters from "0" on, where a sixth bit means that more follow. From the fourth on, each number is the difference
from the run two before.
"""

from collections.abc import Sequence

import numpy as np

CHARACTERS = bytes(range(48, 112))  # of a compressed RLE
CHUNK = 4096  # strings that are decoded at a time
MAX_GROUPS = 6  # of a run; 30 bits are more than any image has pixels


def fill_exactly(counts: Sequence[bytes], pixels: np.ndarray) -> np.ndarray:
    """(N,), bool: the compressed RLEs that are well-formed and whose runs sum to `pixels` (N,)."""
    results = [
        _fill_exactly(counts[k : k + CHUNK], pixels[k : k + CHUNK].astype(np.int64))
        for k in range(0, len(counts), CHUNK)
    ]
    return np.concatenate(results) if results else np.zeros(0, bool)


def _fill_exactly(counts: Sequence[bytes], pixels: np.ndarray) -> np.ndarray:
    proper = np.array([are_whole_numbers(text) for text in counts], bool)
    counts, filled = [text for text, ok in zip(counts, proper, strict=True) if ok], proper.copy()
    if not counts:
        return filled
    groups = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(ord("0"))
    last = np.flatnonzero(groups < 32)  # the last group of each number
    width = np.diff(last, prepend=-1)
    numbers = (groups[last] & 31).astype(np.int64)
    numbers -= (numbers & 16) << 1  # the sign
    for k in range(1, min(int(width.max()), MAX_GROUPS)):
        longer = width > k
        numbers[longer] = numbers[longer] << 5 | groups[last[longer] - k] & 31

    ends = np.searchsorted(last, np.cumsum([len(text) for text in counts]))  # of each string, in numbers
    starts = np.concatenate([[0], ends[:-1]])
    position = np.arange(len(numbers)) - np.repeat(starts, ends - starts)
    runs = numbers.copy()
    for parity in (1, 2):  # the differences along each of the two sequences
        members = np.flatnonzero((position >= parity) & ((position - parity) % 2 == 0))
        sums = np.cumsum(numbers[members])
        before = np.searchsorted(members, starts)
        offsets = np.where(before > 0, sums[np.maximum(before - 1, 0)] if len(sums) else 0, 0)
        runs[members] = sums - np.repeat(offsets, np.diff(np.append(before, len(members))))
    in_range = (runs >= 0) & (width <= MAX_GROUPS)
    total, wrong = (np.add.reduceat(values, starts) for values in (runs, (~in_range).astype(np.int64)))
    filled[proper] = (total == pixels[proper]) & (wrong == 0)
    return filled


def are_whole_numbers(counts: bytes) -> bool:
    """Whether a compressed RLE consists of complete numbers."""
    return len(counts) > 0 and counts[-1] < 48 + 32 and not counts.translate(None, CHARACTERS)
