"""Loaders of both kinds of datasets: endless training batches and exact evaluation passes.

A dataset provides `order(generator)`, the indices of an epoch, `collate(samples)`, the batch of some of its items,
`path(index)`, the file that an item is read from, and for aspect-ratio grouping `is_wide(index)`.
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import distributed
from ..errors import UserError
from .samplers import TrainSampler, evaluation_indices
from .unreadable import ReadableBatches, collate_readable
from .workers import WatchedDataset, start_worker


def build_train_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    num_workers: int,
    seed: int,
    accumulate: int = 1,
    aspect_ratio_grouping: bool = False,
    repeats: int = 1,
    max_unreadable: int = 0,
    start: int = 0,
) -> ReadableBatches:
    """Endless batches for this rank, as `dataset.collate` makes them.

    Args:
        batch_size: of an optimizer step, over all ranks and `accumulate` parts; both must divide it.
        aspect_ratio_grouping: a batch has only wide or only tall images, which takes less padding.
        repeats: copies of each image in a batch, with fewer images per epoch (repeated augmentation, arXiv 1902.05509).
        max_unreadable: how many unreadable images are skipped, with a warning; one more raises `UserError`.
        start: the optimizer step to start with.
    """

    def order(generator: torch.Generator) -> Tensor:
        indices = dataset.order(generator)
        return indices.repeat_interleave(repeats)[: len(indices)]

    sampler = TrainSampler(
        order,
        rank_batch_size(batch_size, accumulate),
        seed,
        dataset.is_wide if aspect_ratio_grouping else None,
        distributed.rank(),
        distributed.world_size(),
        start * accumulate,
    )
    return ReadableBatches(data_loader(dataset, num_workers, batch_sampler=sampler), max_unreadable)


def build_test_loader(
    dataset: Dataset, batch_size: int = 1, *, num_workers: int, max_unreadable: int = 0
) -> ReadableBatches:
    """This rank's share of the images, each once. Detectors take one at a time: padding would change detections."""
    indices = evaluation_indices(len(dataset), distributed.rank(), distributed.world_size())
    return ReadableBatches(data_loader(dataset, num_workers, sampler=indices, batch_size=batch_size), max_unreadable)


def rank_batch_size(batch_size: int, accumulate: int) -> int:
    """A rank's part of the images of an optimizer step. Raises `UserError` if they cannot be split evenly."""
    parts = distributed.world_size() * accumulate
    if batch_size % parts:
        raise UserError(
            f"solver.batch_size is {batch_size}; it must be a multiple of ranks x solver.accumulate, {parts}."
        )
    return batch_size // parts


def data_loader(dataset: Dataset, num_workers: int, **options) -> DataLoader:
    """A `DataLoader` of what `collate_readable` returns. Its workers stay alive from one pass to the next."""
    return DataLoader(
        WatchedDataset(dataset, num_workers) if num_workers else dataset,
        num_workers=num_workers,
        collate_fn=partial(collate_readable, collate=dataset.collate),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # otherwise each pass draws a number from the global generator
        worker_init_fn=start_worker,
        **options,
    )
