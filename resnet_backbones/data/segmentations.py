"""The instance masks of a dataset in a few arrays, and the repairs made to COCO's `segmentation` on the way there."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import columns
from .ragged import Ragged, pack_numbers, pack_strings
from .rle import fill_exactly

FARTHEST = 1e6  # pixels; pycocotools takes memory for each pixel along a polygon, and no image has more on a side


class Segmentations:
    """M masks, each as polygons of at least three corners, as a compressed RLE of its image's size, or absent.

    Args:
        polygons: the polygons of all objects, one per row, as x, y, x, y … in pixels.
        ends: (M,), object j has the rows `ends[j - 1]` to `ends[j] - 1`.
        counts: M rows, the RLE of an object, empty without one.
    """

    def __init__(self, polygons: Ragged, ends: np.ndarray, counts: Ragged) -> None:
        self.polygons, self.ends, self.counts = polygons, ends, counts

    @property
    def present(self) -> np.ndarray:
        """(M,), bool."""
        return (np.diff(self.ends, prepend=0) > 0) | (self.counts.lengths > 0)

    def as_coco(self, j: int, width: int, height: int) -> list | dict | None:
        """Mask j as COCO writes it, in an image of `width` x `height`: polygons, an RLE, or None."""
        if len(counts := self.counts[j]):
            return {"size": [height, width], "counts": counts.tobytes().decode()}
        rows = range(self.ends[j - 1] if j else 0, self.ends[j])
        return [self.polygons[k].tolist() for k in rows] or None

    def all_as_coco(self, sizes: np.ndarray) -> list[list | dict | None]:
        """`as_coco` of every object, in images of width and height `sizes` (M, 2)."""
        polygons, texts = self.polygons.tolist(), self.counts.tolist()
        starts = np.concatenate([[0], self.ends]).tolist()
        return [
            {"size": [height, width], "counts": bytes(text).decode()} if text else polygons[start:end] or None
            for text, (width, height), start, end in zip(texts, sizes.tolist(), starts, starts[1:], strict=False)
        ]


def pack_segmentations(segmentations: Sequence[Any], sizes: np.ndarray) -> tuple[Segmentations, dict[str, np.ndarray]]:
    """Segmentations as files have them: polygons, or RLE whose counts are a list or text.

    Args:
        segmentations: of M objects; None where there is none.
        sizes: (M, 2), width and height of the image of each, in pixels.

    A flat list of numbers, or one of [x, y] pairs, is read as one polygon, a list of one RLE as that RLE.
    Polygons of fewer than three corners, or with coordinates that are not finite, are left out; pycocotools would take
    one of two corners for a box. So is an RLE that is not of its image's size or whose runs do not fill it. Returns
    what is left, and for each repair the (M,) bool of its objects.
    """
    shapes = [_usual(s) if type(s) is list and _is_unusual(s) else s for s in segmentations]
    unusual = [shape is not s and shape != s for shape, s in zip(shapes, segmentations, strict=True)]
    polygons, given, ends = _polygons([s if type(s) is list else [] for s in shapes])
    counts = _compressed([s if type(s) is dict else None for s in shapes], sizes)
    packed = Segmentations(polygons, ends, pack_strings(counts))
    lost = np.diff(ends, prepend=0) < given
    written = np.array([s is not None and s != [] for s in segmentations], bool)
    return packed, {
        "a segmentation in other lists than COCO's, taken for what it holds": np.array(unusual, bool),
        "polygons without three proper corners, left out": lost & packed.present,
        "a segmentation that no mask can be drawn from, left out": written & ~packed.present,
    }


def _is_unusual(shape: list) -> bool:
    """Whether a list, judging by its first entry, is not one of flat polygons."""
    first = shape[0] if shape else None
    if type(first) is list:
        return len(first) == 2 or (len(first) > 0 and type(first[0]) is list)
    return type(first) in (int, float, dict)


def _usual(shape: list) -> list | dict:
    return shape[0] if len(shape) == 1 and type(shape[0]) is dict else _outlines(shape)


def _outlines(shape: list, depth: int = 3) -> list:
    """The flat polygons in a list of numbers, in one of [x, y] pairs, or in lists of such lists."""
    if all(type(v) in (int, float) for v in shape) or depth == 0:
        return [shape]
    if len(shape) > 2 and all(type(point) is list and len(point) == 2 for point in shape):
        return [[v for point in shape for v in point]]
    parts = (_outlines(part, depth - 1) if type(part) is list else [part] for part in shape)
    return list(itertools.chain.from_iterable(parts))


def _polygons(shapes: list[list]) -> tuple[Ragged, np.ndarray, np.ndarray]:
    """The proper polygons of each object; how many each has in `shapes`, (M,), and the ends of those it keeps, (M,)."""
    given = np.fromiter(map(len, shapes), np.int64, len(shapes))
    rows = list(itertools.chain.from_iterable(shapes))
    try:
        packed = pack_numbers(rows)
    except (TypeError, ValueError, OverflowError):  # something in them is not a number
        packed = pack_numbers([_numbers(row) for row in rows])
    lengths = packed.lengths
    proper = (lengths >= 6) & (lengths % 2 == 0)
    far = np.flatnonzero(~(np.abs(packed.values) < FARTHEST))  # NaN, too
    proper[np.searchsorted(packed.ends, far, "right")] = False
    before = np.concatenate([[0], np.cumsum(proper)])
    if not proper.all():
        packed = Ragged(packed.values[np.repeat(proper, lengths)], np.cumsum(lengths[proper]))
    return packed, given, before[np.cumsum(given)]


def _numbers(row: Any) -> list[float]:
    """A polygon's coordinates; none if it holds something else."""
    try:
        return [float(v) for v in row]
    except (TypeError, ValueError, OverflowError):
        return []


def _compressed(rles: list[dict | None], sizes: np.ndarray) -> list[bytes]:
    """Each RLE's runs as compressed text; empty for one that does not fill its image."""
    counts = [b"" if s is None else _text(s, *size) for s, size in zip(rles, sizes.tolist(), strict=True)]
    present = [j for j, text in enumerate(counts) if text]
    wrong = ~fill_exactly([counts[j] for j in present], sizes[present].prod(1))
    for j in np.array(present, np.int64)[wrong].tolist():
        counts[j] = b""
    return counts


def _text(s: dict, width: int, height: int) -> bytes:
    """The compressed runs of one RLE; empty if its size is not the image's."""
    size, counts = s.get("size"), s.get("counts")
    if size is not None and not (isinstance(size, (list, tuple)) and columns.numbers(size).tolist() == [height, width]):
        return b""
    if isinstance(counts, list):
        runs = columns.numbers(counts)
        if not ((runs >= 0) & (runs == np.round(runs))).all() or runs.sum() != height * width:
            return b""
        from pycocotools import mask  # slow to import, and few files have such RLEs

        runs = runs.astype(np.int64).tolist()
        return mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]
    if isinstance(counts, str):
        return counts.encode("ascii", "replace")  # the replacement for what is not ASCII is not in the RLE alphabet
    return counts if isinstance(counts, bytes) else b""
