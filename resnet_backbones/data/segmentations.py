"""The segmentations of a dataset: polygons in one array of numbers, every other form as JSON."""

import itertools
import json
from functools import cached_property

import numpy as np

from .masks import FARTHEST, is_polygon
from .ragged import Ragged, pack_numbers, pack_strings


class Segmentations:
    """M segmentations as COCO writes them: a list of polygons, an RLE, or None.

    Args:
        polygons: the polygons of all objects, one per row.
        ends: (M,), object j has the rows `ends[j - 1]` to `ends[j] - 1`.
        others: M rows, the JSON of a segmentation that is not a list of polygons, empty for one that is.
    """

    def __init__(self, polygons: Ragged, ends: np.ndarray, others: Ragged) -> None:
        self.polygons, self.ends, self.others = polygons, ends, others

    def __getitem__(self, j: int) -> object:
        if len(text := self.others[j]):
            return json.loads(text.tobytes())
        return [self.polygons[k].tolist() for k in range(self.ends[j - 1] if j else 0, self.ends[j])]

    @property
    def present(self) -> np.ndarray:
        """(M,), bool: segmentations other than None."""
        return self._first != ord("n")  # null

    def drawable(self) -> np.ndarray:
        """(M,), bool: segmentations that a mask can be drawn from, an RLE or at least one proper polygon."""
        lengths = self.polygons.lengths
        far = np.flatnonzero(~(np.abs(self.polygons.values) < FARTHEST))  # NaN, too
        proper = (lengths >= 6) & (lengths % 2 == 0)
        proper[np.searchsorted(self.polygons.ends, far, "right")] = False
        count = np.cumsum(np.concatenate([[0], proper]))[self.ends]
        drawable = (np.diff(count, prepend=0) > 0) | (self._first == ord("{"))
        for j in np.flatnonzero(self._first == ord("[")):  # rare: lists with something else than polygons
            drawable[j] = any(map(is_polygon, self[j]))
        return drawable

    @cached_property
    def _first(self) -> np.ndarray:
        """(M,): the first byte of each JSON, 0 for polygons."""
        lengths = self.others.lengths
        first, filled = np.zeros(len(lengths), np.uint8), lengths > 0
        first[filled] = self.others.values[(self.others.ends - lengths)[filled]]
        return first


def pack_segmentations(segmentations: list[object]) -> Segmentations:
    """`segmentations` in arrays. Anything but polygons is stored unchecked; decoding it is when it is judged."""
    listed = [type(s) is list and all(type(polygon) is list for polygon in s) for s in segmentations]
    try:
        return _pack(segmentations, listed)
    except (TypeError, ValueError, OverflowError):  # something in the lists is not a number
        return _pack(segmentations, [fits and _is_numeric(s) for s, fits in zip(segmentations, listed, strict=True)])


def _pack(segmentations: list[object], are_polygons: list[bool]) -> Segmentations:
    pairs = list(zip(segmentations, are_polygons, strict=True))
    polygons = [s if numeric else [] for s, numeric in pairs]
    others = [b"" if numeric else json.dumps(s).encode() for s, numeric in pairs]
    ends = np.cumsum([len(s) for s in polygons], dtype=np.int64)
    return Segmentations(pack_numbers(list(itertools.chain.from_iterable(polygons))), ends, pack_strings(others))


def _is_numeric(polygons: list[list]) -> bool:
    try:
        pack_numbers(polygons)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
