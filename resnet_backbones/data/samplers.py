"""The order of training images: a pure function of the seed, the same for any number of ranks and workers."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import Sampler


class TrainSampler(Sampler):
    """Endless batches of (index, seed), every image once an epoch in random order.

    Each global batch is one stretch of the shuffled order, of which rank r takes the r-th part. With `is_wide`, a
    batch holds only wide or only tall images (aspect-ratio batching, as in detectron2), which pads less.

    Args:
        size: number of images.
        batch_size: of one rank.
        start: how many batches to pass over, to go on where a stopped run was.
        order: indices of an epoch drawn with a generator; any permutation by default.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        is_wide: Callable[[int], bool] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        order: Callable[[torch.Generator], Tensor] | None = None,
    ) -> None:
        self.order = order or (lambda generator: torch.randperm(size, generator=generator))
        self.size, self.batch_size, self.seed, self.is_wide = size, batch_size, seed, is_wide
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = self.order(generator)
            seeds = torch.randint(2**62, (self.size,), generator=generator)
            for index, seed in zip(order.tolist(), seeds.tolist(), strict=True):
                bucket = waiting[self.is_wide(index) if self.is_wide else True]
                bucket.append((index, seed))
                if len(bucket) == self.batch_size * self.world_size:
                    yield bucket[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
                    bucket.clear()


def evaluation_indices(size: int, rank: int, world_size: int) -> list[int]:
    """This rank's share of `size` images: no repeats, no omissions."""
    return list(range(rank, size, world_size))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """torch's random draws from `seed`, and afterwards from where they were: the model's own stay as they are."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield
