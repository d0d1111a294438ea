"""The segmentations of a data set: polygons in one array, and the few other forms as JSON."""

import itertools
import json

import numpy as np

from .masks import LARGEST, is_polygon
from .packed import Rows, pack_numbers, pack_strings

POLYGONS, OTHER, ABSENT = 0, 1, 2


class Outlines:
    """M segmentations, each as COCO writes it (polygons, or a dict of an RLE) or None.

    Polygons take 8 bytes a coordinate instead of an object each. `kinds` (M,) says which form a segmentation has,
    `places` (M,) its row in `polygon_ends` or `others`.
    """

    def __init__(
        self, kinds: np.ndarray, places: np.ndarray, polygons: Rows, polygon_ends: np.ndarray, others: Rows
    ) -> None:
        self.kinds, self.places = kinds, places
        self.polygons, self.polygon_ends, self.others = polygons, polygon_ends, others

    def __getitem__(self, j: int) -> object:
        kind, place = self.kinds[j], self.places[j]
        if kind == ABSENT:
            return None
        if kind == OTHER:
            return json.loads(self.others[place].tobytes())
        start = self.polygon_ends[place - 1] if place else 0
        return [self.polygons[k].tolist() for k in range(start, self.polygon_ends[place])]

    @property
    def present(self) -> np.ndarray:
        """(M,), bool: not None."""
        return self.kinds != ABSENT

    def enclosing(self) -> np.ndarray:
        """(M,), bool: segmentations that enclose something: an RLE, or a polygon of three corners as `is_polygon`."""
        lengths = np.diff(self.polygons.ends, prepend=0)
        finite = np.ones(len(lengths), bool)
        absurd = np.flatnonzero(~(np.abs(self.polygons.content) < LARGEST))
        finite[np.searchsorted(self.polygons.ends, absurd, "right")] = False
        encloses = (lengths >= 6) & (lengths % 2 == 0) & finite
        counts = np.cumsum(np.concatenate([[0], encloses]))
        ends = self.polygon_ends
        result = np.zeros(len(self.kinds), bool)
        if len(ends):
            result[self.kinds == POLYGONS] = counts[ends] > counts[np.concatenate([[0], ends[:-1]])]
        others = np.flatnonzero(self.kinds == OTHER)
        firsts = self.others.content[self.others.ends - np.diff(self.others.ends, prepend=0)]
        result[others] = firsts == ord("{")
        for j in others[firsts == ord("[")]:  # few: lists in which something is no polygon
            result[j] = any(map(is_polygon, self[j]))
        return result


def pack_outlines(segmentations: list[object]) -> Outlines:
    """What is not a list of lists of numbers, such as an RLE, is kept as it is, for whoever decodes it to judge."""
    kinds = np.array([ABSENT if s is None else POLYGONS if _is_polygons(s) else OTHER for s in segmentations], np.int8)
    polygons = [s for s, kind in zip(segmentations, kinds, strict=True) if kind == POLYGONS]
    try:
        rows = pack_numbers(list(itertools.chain.from_iterable(polygons)))
    except (TypeError, ValueError, OverflowError):  # something in there is no number
        for j in np.flatnonzero(kinds == POLYGONS):
            if not _is_numeric(segmentations[j]):
                kinds[j] = OTHER
        polygons = [s for s, kind in zip(segmentations, kinds, strict=True) if kind == POLYGONS]
        rows = pack_numbers(list(itertools.chain.from_iterable(polygons)))
    others = pack_strings(json.dumps(s).encode() for s, k in zip(segmentations, kinds, strict=True) if k == OTHER)
    places = np.zeros(len(kinds), np.int64)
    for kind in (POLYGONS, OTHER):
        places[kinds == kind] = np.arange((kinds == kind).sum())
    return Outlines(kinds, places, rows, np.cumsum([len(s) for s in polygons], dtype=np.int64), others)


def _is_polygons(segmentation: object) -> bool:
    return type(segmentation) is list and all(type(polygon) is list for polygon in segmentation)


def _is_numeric(polygons: list[list]) -> bool:
    try:
        pack_numbers(polygons)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
