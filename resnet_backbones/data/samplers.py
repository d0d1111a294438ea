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


def repeat_factors(images: Tensor, labels: Tensor, count: int, threshold: float) -> Tensor:
    """(count,): how often each image is in an epoch, on average (LVIS, arXiv 1908.03195, appendix B.2).

    A class in a fraction f of the images is repeated r = max(1, sqrt(threshold / f)) times, an image as often as the
    class of its objects that is repeated most, and once if it has none.

    Args:
        images, labels: (M,) each, of all objects.
        count: of images.
    """
    images, labels = torch.unique(torch.stack([images, labels]), dim=1)
    fractions = torch.bincount(labels) / count
    of_classes = (threshold / fractions).sqrt().clamp(min=1)
    return torch.ones(count).scatter_reduce(0, images, of_classes[labels], "amax")


def repeated_order(factors: Tensor, generator: torch.Generator) -> Tensor:
    """The indices of an epoch in random order, each repeated by its factor, randomly rounded up or down."""
    times = factors.floor() + (torch.rand(len(factors), generator=generator) < factors.frac())
    indices = torch.arange(len(factors)).repeat_interleave(times.long())
    return indices[torch.randperm(len(indices), generator=generator)]


def evaluation_indices(size: int, rank: int, world_size: int) -> list[int]:
    """This rank's share of `size` images: none twice, none missing."""
    return list(range(rank, size, world_size))
