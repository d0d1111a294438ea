"""Anchors that fit the boxes of a data set: k-means as in YOLOv2 (arXiv 1612.08242 §2), for each level of a pyramid."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Fit(NamedTuple):
    """Over M boxes, of the best IoU with an anchor of the same center: its mean, and the shares of at least that."""

    mean_iou: float
    over_50: float
    over_70: float


def propose_anchors(
    shapes: np.ndarray, anchor_sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float]
) -> tuple[list[list[int]], list[float]]:
    """As many sizes on each level and aspect ratios as are given, in the centers of the boxes.

    A box belongs to the level that has the nearest of `anchor_sizes`, so a level keeps objects that suit its stride.
    Levels with fewer boxes than sizes keep theirs.

    Args:
        shapes: (M, 2), widths and heights in pixels as the network sees them.
        anchor_sizes: for each level, square roots of areas in pixels.
        aspect_ratios: heights / widths.
    """
    sizes, ratios = np.log(shapes.prod(1)) / 2, np.log(shapes[:, 1] / shapes[:, 0])
    given = np.concatenate([np.log(level) for level in anchor_sizes])
    level_of = np.repeat(np.arange(len(anchor_sizes)), [len(level) for level in anchor_sizes])
    level = level_of[np.abs(sizes[:, None] - given).argmin(1)]
    proposed = []
    for k, old in enumerate(anchor_sizes):
        members = sizes[level == k]
        centers = np.exp(k_means(members, len(old))) if len(np.unique(members)) >= len(old) else old
        proposed.append([max(1, round(center)) for center in centers])
    if len(np.unique(ratios)) < len(aspect_ratios):
        return proposed, list(aspect_ratios)
    return proposed, [round(float(ratio), 2) for ratio in np.exp(k_means(ratios, len(aspect_ratios)))]


def k_means(values: np.ndarray, k: int, starts: int = 10) -> np.ndarray:
    """The `k` centers of numbers, in order: the best of some runs from centers that are drawn far apart (k-means++)."""
    rng, best, least = np.random.default_rng(0), None, np.inf
    for _ in range(starts):
        centers = values[rng.integers(len(values), size=1)]
        while len(centers) < k:
            squared = np.square(values[:, None] - centers).min(1)
            centers = np.append(centers, rng.choice(values, p=squared / squared.sum()))
        centers = converged(values, centers)
        total = np.square(values[:, None] - centers).min(1).sum()
        if total < least:
            best, least = centers, total
    return np.sort(best)


def converged(values: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Lloyd's iteration: each center moves to the mean of the values that are nearest to it."""
    while True:
        nearest = np.abs(values[:, None] - centers).argmin(1)
        moved = np.array([values[nearest == j].mean() if (nearest == j).any() else c for j, c in enumerate(centers)])
        if np.allclose(moved, centers, rtol=0, atol=1e-9):
            return moved
        centers = moved


def anchor_fit(shapes: np.ndarray, anchor_sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float]) -> Fit:
    """How well anchors cover boxes of `shapes` (M, 2), if they have the same centers."""
    sizes, ratios = np.concatenate(anchor_sizes), np.array(aspect_ratios)
    widths, heights = np.outer(sizes, ratios**-0.5).ravel(), np.outer(sizes, ratios**0.5).ravel()
    overlap = np.minimum(shapes[:, :1], widths) * np.minimum(shapes[:, 1:], heights)
    best = (overlap / (shapes.prod(1)[:, None] + widths * heights - overlap)).max(1)
    return Fit(float(best.mean()), float((best >= 0.5).mean()), float((best >= 0.7).mean()))
