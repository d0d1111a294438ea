"""Overlapping tiles of a large image, and the detections of all tiles as those of the image."""

import math
from typing import NamedTuple

import numpy as np

from .detections import Detections
from .masks import union

SAME = 0.5  # minimum agreement of two detections of one object, in the area that both tiles see
EDGE = 0.01  # of a tile's side: a box that ends this close to its border may continue beyond it


class Tile(NamedTuple):
    x0: int
    y0: int
    x1: int
    y1: int


def tiles_of(width: int, height: int, side: int | None, overlap: float) -> list[Tile]:
    """Tiles of `side` pixels, evenly spaced, row by row; a single one where the image is not larger, or side is None.

    Args:
        overlap: the minimum fraction of its side by which a tile overlaps the next.
    """
    if side is None:
        return [Tile(0, 0, width, height)]
    rows, columns = (_starts(length, side, overlap) for length in (height, width))
    return [Tile(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    steps = math.ceil((length - side) / max(side * (1 - overlap), 1))
    return np.linspace(0, length - side, steps + 1).round().astype(int).tolist()


def merge(found: list[Detections], tiles: list[Tile]) -> Detections:
    """One image's detections from those of its tiles, all in coordinates of the image.

    Two detections of one class from different tiles are of the same object if they agree in the area that both tiles
    see: there their IoU is at least 0.5, or, if a border of its tile cuts one of them, at least half of it lies in the
    other. The best one that no border cuts is kept. If there is none, the best piece is joined with the best one of
    each other tile, if that scores at least half as much: the box and the mask cover all of them. A single piece is
    left out if another tile sees it whole and does not find it.
    """
    if len(found) == 1:
        return found[0]
    boxes, labels, scores = (
        np.concatenate([getattr(detections, key) for detections in found]) for key in ("boxes", "labels", "scores")
    )
    rles = None if found[0].rles is None else [encoded for detections in found for encoded in detections.rles]
    size, places = found[0].size, np.array(tiles)
    tile_of = np.repeat(np.arange(len(tiles)), [len(detections) for detections in found])
    cut = _is_cut(boxes, places[tile_of], size)
    same = _same_objects(boxes, labels, cut, tile_of, places)

    objects: list[list[int]] = []
    done = np.zeros(len(boxes), bool)
    for k in np.lexsort((-scores, cut)).tolist():  # whole ones first, then by score
        if not done[k]:
            pieces = _take(k, same, done, tile_of, scores) if cut[k] else [k]
            done[[k, *same[k]]] = True
            if len(pieces) > 1 or not (cut[k] and _is_seen_whole(boxes[k], places, size)):
                objects.append(pieces)
    objects.sort(key=lambda pieces: -scores[pieces[0]])
    best = [pieces[0] for pieces in objects]
    corners = [[*boxes[pieces, :2].min(0), *boxes[pieces, 2:].max(0)] for pieces in objects]
    if rles is not None:
        rles = [union([rles[j] for j in pieces]) if len(pieces) > 1 else rles[pieces[0]] for pieces in objects]
    boxes = np.array(corners, np.float32).reshape(-1, 4)
    return Detections(boxes, labels[best], scores[best], found[0].classes, size, rles)


def _take(k: int, same: list[list[int]], done: np.ndarray, tile_of: np.ndarray, scores: np.ndarray) -> list[int]:
    """Piece k and those to join with it; all pieces of its object are marked as done."""
    pieces, tiles = [k], {tile_of[k]}
    for piece in pieces:  # which grows
        others = sorted((j for j in same[piece] if not done[j]), key=lambda j: -scores[j])
        for j in others:
            done[j] = True
            if tile_of[j] not in tiles and scores[j] >= scores[k] / 2:
                tiles.add(tile_of[j])
                pieces.append(j)
    return pieces


def _is_cut(boxes: np.ndarray, tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(…,), bool: whether boxes (…, 4) reach a border of tiles (…, 4) that is not a border of the image."""
    margin = EDGE * (tiles[..., 2:] - tiles[..., :2]).max(-1, keepdims=True)
    inner = tiles != [0, 0, size[1], size[0]]
    return (inner & (np.abs(boxes - tiles) <= margin)).any(-1)


def _is_seen_whole(box: np.ndarray, tiles: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether `box` (4,) is within one of `tiles` (T, 4) that does not cut it."""
    within = (tiles[:, :2] <= box[:2]).all(1) & (box[2:] <= tiles[:, 2:]).all(1)
    return bool((within & ~_is_cut(box, tiles, size)).any())


def _same_objects(
    boxes: np.ndarray, labels: np.ndarray, cut: np.ndarray, tile_of: np.ndarray, tiles: np.ndarray
) -> list[list[int]]:
    """For each detection, those of other tiles that are of the same object, as defined in `merge`.

    Args:
        tile_of: (M,), in ascending order, the index in `tiles` (T, 4) of each detection's.
    """
    same: list[list[int]] = [[] for _ in boxes]
    starts = np.searchsorted(tile_of, np.arange(len(tiles) + 1))
    for a in range(len(tiles)):
        seen_by_both = _overlap(tiles[a], tiles[a + 1 :])
        for b in np.flatnonzero(_area(seen_by_both)):
            parts = []
            for tile in (a, a + 1 + b):
                members = np.arange(starts[tile], starts[tile + 1])
                clipped = _overlap(boxes[members], seen_by_both[b])
                inside = _area(clipped) > 0
                parts.append((members[inside], clipped[inside]))
            (i, ones), (j, others) = parts
            agree = _agree(ones, others, cut[i], cut[j]) & (labels[i][:, None] == labels[j])
            for m, n in np.argwhere(agree):
                same[i[m]].append(int(j[n]))
                same[j[n]].append(int(i[m]))
    return same


def _agree(ones: np.ndarray, others: np.ndarray, one_cut: np.ndarray, other_cut: np.ndarray) -> np.ndarray:
    """(M, N), bool: whether boxes (M, 4) and (N, 4) are of the same objects, where both tiles see them."""
    shared = _area(_overlap(ones[:, None], others))
    one, other, one_cut = _area(ones)[:, None], _area(others), one_cut[:, None]
    union = one + other - shared
    return shared >= SAME * np.where(one_cut == other_cut, union, np.where(one_cut, one, other))


def _overlap(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(…, 4): the rectangles that are in both, without area if there are none."""
    low, high = np.maximum(ones[..., :2], others[..., :2]), np.minimum(ones[..., 2:], others[..., 2:])
    return np.concatenate([low, high], axis=-1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1)
