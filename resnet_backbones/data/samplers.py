"""The order of training images: a pure function of the seed, the same for any number of ranks and workers."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class TrainSampler(Sampler):
    """Endless batches of (index, seed), epoch after epoch.

    Ranks split each global batch: rank r gets the r-th part.

    Args:
        order: the indices of an epoch in random order, drawn with the given generator.
        batch_size: of one rank.
        is_wide: if given, a batch has only wide or only tall images (aspect-ratio grouping, as in detectron2).
        start: the number of batches to skip when a run is resumed.
    """

    def __init__(
        self,
        order: Callable[[torch.Generator], Tensor],
        batch_size: int,
        seed: int,
        is_wide: Callable[[int], bool] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        self.order, self.batch_size, self.seed, self.is_wide = order, batch_size, seed, is_wide
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = self.order(generator)
            seeds = torch.randint(2**62, (len(order),), generator=generator)
            for index, seed in zip(order.tolist(), seeds.tolist(), strict=True):
                bucket = waiting[self.is_wide(index) if self.is_wide else True]
                bucket.append((index, seed))
                if len(bucket) == self.batch_size * self.world_size:
                    yield bucket[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
                    bucket.clear()


def evaluation_indices(size: int, rank: int, world_size: int) -> list[int]:
    """This rank's share of `size` images: none twice, none missing."""
    return list(range(rank, size, world_size))
