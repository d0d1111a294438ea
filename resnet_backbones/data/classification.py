"""The torch data set over labelled images, and its loaders."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import distributed
from ..errors import UserError
from .imagenet import FileImages
from .images import decode_image
from .loader import data_loader, rank_batch_size
from .reading import with_retries
from .samplers import TrainSampler, evaluation_indices, seeded
from .shards import ShardImages
from .unreadable import ReadableBatches, Unreadable, split_unreadable


class ClassificationDataset(Dataset):
    """Item `index`, or `(index, seed)` to fix its random augmentation, is `transform(image)`, the label and the place.

    An image that cannot be read gives `Unreadable` instead, so that one bad file does not end a run.
    """

    def __init__(self, images: FileImages | ShardImages, transform: Callable[[Tensor], Tensor | list]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor | list, int, str] | Unreadable:
        index, seed = item if isinstance(item, tuple) else (item, None)
        try:
            content, label, name = with_retries(partial(self.images.read, index))
        except OSError as error:  # gone, or no rights to it
            return Unreadable(f"Image {error.filename} cannot be read: {error.strerror}.")
        try:
            image = decode_image(content, name)
        except UserError as error:
            return Unreadable(str(error))
        with seeded(seed):
            return self.transform(image), label, name

    def place(self, index: int) -> str:
        """Where an item's image lies."""
        return self.images.where(index)


def build_train_loader(
    dataset: ClassificationDataset,
    batch_size: int,
    *,
    num_workers: int,
    seed: int,
    accumulate: int = 1,
    repeats: int = 1,
    max_unreadable: int = 0,
    start: int = 0,
) -> ReadableBatches:
    """Endless batches for this rank: images (N, 3, H, W) uint8, and `labels` (N,) and `file_name` of each.

    Args:
        batch_size: of an optimiser step, over all ranks and `accumulate` parts; both must divide it.
        repeats: of each image in a batch, in as many fewer images an epoch (repeated augmentation, arXiv 1902.05509).
        max_unreadable: so many images are left out and named; one more raises `UserError`.
        start: the optimiser step to begin with.
    """

    def order(generator: torch.Generator) -> Tensor:
        return dataset.images.order(generator).repeat_interleave(repeats)[: len(dataset)]

    sampler = TrainSampler(
        len(dataset),
        rank_batch_size(batch_size, accumulate),
        seed,
        None,
        distributed.rank(),
        distributed.world_size(),
        start * accumulate,
        order,
    )
    return ReadableBatches(data_loader(dataset, num_workers, collate_train, batch_sampler=sampler), max_unreadable)


def build_test_loader(
    dataset: ClassificationDataset, batch_size: int, *, num_workers: int, max_unreadable: int = 0
) -> ReadableBatches:
    """This rank's share of the images, each once: lists of their views, labels (N,) and places."""
    indices = evaluation_indices(len(dataset), distributed.rank(), distributed.world_size())
    loader = data_loader(dataset, num_workers, collate_test, sampler=indices, batch_size=batch_size)
    return ReadableBatches(loader, max_unreadable)


def collate_train(samples: list) -> tuple[tuple[Tensor, dict] | None, list[str]]:
    """One batch of those that could be read, and why the others could not."""
    read, unreadable = split_unreadable(samples)
    if not read:
        return None, unreadable
    images, labels, names = zip(*read, strict=True)
    return (torch.stack(images), {"labels": torch.tensor(labels), "file_name": list(names)}), unreadable


def collate_test(samples: list) -> tuple[tuple[list, Tensor, list[str]] | None, list[str]]:
    read, unreadable = split_unreadable(samples)
    if not read:
        return None, unreadable
    views, labels, names = zip(*read, strict=True)
    return (list(views), torch.tensor(labels), list(names)), unreadable
