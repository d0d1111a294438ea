"""The gradient by path length (arXiv 1605.06431 §4.3, Figure 6).

A network of n residual blocks is a collection of 2^n paths, each of which takes the residual or the shortcut of every
block; C(n, k) of them take k residuals. To see what paths of length k contribute, the forward pass is that of the whole
network; in the backward pass, k random blocks pass the gradient through their residual alone, the others through their
shortcut alone.
"""

import math
import random
from collections.abc import Callable

from torch import Tensor

from .blocks import Block, without_gradient
from .gradients import block_gradients


def path_gradient(blocks: list[Block], length: int, loss: Callable[[], Tensor], seed: int) -> float:
    """The norm of the gradient at the input of the first block along one random path of `length` residuals."""
    residual = [block for block in blocks if block.is_residual]
    chosen = set(random.Random(f"{length} {seed}").sample([block.name for block in residual], length))
    along = [block for block in residual if block.name in chosen]
    past = [block for block in residual if block.name not in chosen]
    with without_gradient(along, "shortcut"), without_gradient(past, "residual"):
        (gradient,), _ = block_gradients(blocks[:1], loss)
    return float(gradient.norm())


def path_lengths(count: int, most: int = 24) -> list[int]:
    """Lengths from 0 to `count`, all of them or `most`, evenly spaced."""
    steps = min(count, most - 1)
    return sorted({round(k * count / steps) for k in range(steps + 1)}) if count else [0]


def path_table(count: int, gradients: dict[int, list[float]]) -> list[dict]:
    """For each length the fraction of the 2^count paths that have it, the mean norm of the gradient along one of them,
    and their product, the contribution of all paths of this length, relative to the largest."""
    rows = []
    for length, norms in sorted(gradients.items()):
        share = math.comb(count, length) / 2**count
        rows.append({"length": length, "paths": share, "gradient": sum(norms) / len(norms)})
    largest = max((row["paths"] * row["gradient"] for row in rows), default=0) or 1.0
    return [row | {"contribution": row["paths"] * row["gradient"] / largest} for row in rows]
