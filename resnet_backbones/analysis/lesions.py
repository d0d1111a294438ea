"""The experiments of a lesion study: remove single blocks, remove several at random, swap pairs of them.

Residual networks lose little in any of these, plain ones everything (arXiv 1605.06431 §4, Figures 3 and 5).
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import nn

from .blocks import Block, reordered, without

Shapes = Mapping[str, tuple[torch.Size, torch.Size]]


def keeps_size(block: Block, shapes: Shapes) -> bool:
    """Whether the block's output has the size of its input."""
    given, returned = shapes[block.name]
    return given == returned


def removable(block: Block, shapes: Shapes) -> bool:
    return block.is_residual or keeps_size(block, shapes)


def plan_lesions(blocks: list[Block], shapes: Shapes, draws: int, seed: int = 0) -> Iterator[dict]:
    """The experiments, as dicts with "kind":

    "baseline", the unchanged network;
    "single", without the block "blocks": [name], for each that can be removed;
    "random", without 2, 4, 8 … of the blocks that keep their size, `draws` times each;
    "reordered", with 1, 2, 4 … random swaps of two blocks of a stage whose parameters have the same shapes, `draws`
        times each: "order" is the block in each place, "correlation" Kendall's tau between that and the trained order.
    """
    yield {"kind": "baseline"}
    for block in blocks:
        if removable(block, shapes):
            yield {"kind": "single", "blocks": [block.name], "keeps_size": keeps_size(block, shapes)}
    generator = random.Random(seed)
    same_size = [block.name for block in blocks if keeps_size(block, shapes)]
    for count in _powers_of_two(len(same_size))[1:]:
        for _ in range(draws):
            chosen = set(generator.sample(same_size, count))
            yield {"kind": "random", "blocks": [block.name for block in blocks if block.name in chosen]}
    groups = [[k for k in group if keeps_size(blocks[k], shapes)] for group in alike(blocks)]
    groups = [group for group in groups if len(group) > 1]
    for count in _powers_of_two(sum(map(len, groups))):
        for _ in range(draws):
            order = swapped(len(blocks), groups, count, generator)
            yield {"kind": "reordered", "swaps": count, "order": order, "correlation": kendall_tau(order)}


def _powers_of_two(limit: int) -> list[int]:
    return [2**k for k in range(limit.bit_length()) if 2**k <= limit]


def alike(blocks: list[Block]) -> list[list[int]]:
    """The indices of blocks that can swap places: of the same stage, class and parameter shapes."""
    groups: dict[tuple, list[int]] = {}
    for k, block in enumerate(blocks):
        parameters = tuple((name, tuple(p.shape)) for name, p in block.module.named_parameters())
        groups.setdefault((block.stage, type(block.module), parameters), []).append(k)
    return list(groups.values())


def swapped(length: int, groups: list[list[int]], count: int, generator: random.Random) -> list[int]:
    """0 … length - 1 after `count` swaps of two places drawn from one of the `groups`."""
    order = list(range(length))
    while count > 0 or order == sorted(order):  # one more if the swaps have cancelled out
        i, j = generator.sample(generator.choices(groups, [len(group) for group in groups])[0], 2)
        order[i], order[j] = order[j], order[i]
        count -= 1
    return order


def kendall_tau(order: list[int]) -> float:
    """Kendall's rank correlation between `order`, a permutation, and 0, 1, 2 …: 1 if equal, -1 if reversed."""
    pairs = [(i, j) for j in range(len(order)) for i in range(j)]
    return sum(1 if order[i] < order[j] else -1 for i, j in pairs) / len(pairs)


def lesion(model: nn.Module, blocks: list[Block], experiment: dict) -> AbstractContextManager:
    """A context in which `model` is changed as an `experiment` of `plan_lesions` says."""
    if experiment["kind"] == "reordered":
        return reordered(model, blocks, experiment["order"])
    removed = experiment.get("blocks", [])
    return without(model, [block for block in blocks if block.name in removed])
