"""Loaders: endless training batches and exact evaluation passes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import distributed
from ..errors import UserError
from .dataset import DetectionDataset
from .samplers import TrainSampler, evaluation_indices
from .unreadable import ReadableBatches, split_unreadable
from .workers import WatchedDataset, start_worker


def build_train_loader(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    num_workers: int,
    seed: int,
    accumulate: int = 1,
    aspect_ratio_grouping: bool = True,
    max_unreadable: int = 0,
    start: int = 0,
) -> ReadableBatches:
    """Endless lists of images and lists of targets for this rank.

    Args:
        batch_size: of an optimiser step, over all ranks and `accumulate` parts; both must divide it.
        max_unreadable: so many images are left out and named; one more raises `UserError`.
        start: the optimiser step to begin with.
    """
    sampler = TrainSampler(
        len(dataset),
        rank_batch_size(batch_size, accumulate),
        seed,
        dataset.is_wide if aspect_ratio_grouping else None,
        distributed.rank(),
        distributed.world_size(),
        start * accumulate,
    )
    return ReadableBatches(data_loader(dataset, num_workers, collate, batch_sampler=sampler), max_unreadable)


def build_test_loader(dataset: DetectionDataset, *, num_workers: int, max_unreadable: int = 0) -> ReadableBatches:
    """This rank's share of the images, one at a time so that padding cannot change a detection."""
    indices = evaluation_indices(len(dataset), distributed.rank(), distributed.world_size())
    return ReadableBatches(data_loader(dataset, num_workers, collate, sampler=indices, batch_size=1), max_unreadable)


def collate(samples: list) -> tuple[tuple[list[Tensor], list[dict]] | None, list[str]]:
    """Images and targets stay lists: their sizes differ. Beside them, why the images left out could not be read."""
    read, unreadable = split_unreadable(samples)
    if not read:
        return None, unreadable
    images, targets = zip(*read, strict=True)
    return (list(images), list(targets)), unreadable


def rank_batch_size(batch_size: int, accumulate: int) -> int:
    """A rank's part of an optimiser step's images. Raises `UserError` where they cannot be shared out."""
    parts = distributed.world_size() * accumulate
    if batch_size % parts:
        raise UserError(
            f"solver.batch_size is {batch_size}; it must be a multiple of ranks x solver.accumulate, {parts}."
        )
    return batch_size // parts


def data_loader(dataset: Dataset, num_workers: int, collate_fn: Callable, **options) -> DataLoader:
    """torch's loader, whose workers stay from one pass to the next and note what they read."""
    return DataLoader(
        WatchedDataset(dataset, num_workers) if num_workers else dataset,
        num_workers=num_workers,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # else each pass would take a draw from the model's random numbers
        worker_init_fn=start_worker,
        **options,
    )
