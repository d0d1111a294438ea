"""The torch data set over labelled images, its loaders, and what happens to images that cannot be read."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from .. import distributed
from ..errors import UserError
from .imagenet import FileImages
from .images import decode_image
from .loader import data_loader, rank_batch_size
from .samplers import TrainSampler, evaluation_indices, seeded
from .shards import ShardImages

logger = logging.getLogger(__name__)


class Unreadable(NamedTuple):
    """Stands for an image that could not be read, with the reason."""

    reason: str


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
            content, label, name = self.images.read(index)
        except OSError as error:  # gone, or no rights to it
            return Unreadable(f"Image {error.filename} cannot be read: {error.strerror}.")
        try:
            image = decode_image(content, name)
        except UserError as error:
            return Unreadable(str(error))
        with seeded(seed):
            return self.transform(image), label, name


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
) -> Iterator[tuple[Tensor, dict]]:
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
    loader = data_loader(dataset, num_workers, collate_train, batch_sampler=sampler)
    return leave_out_unreadable(loader, max_unreadable)


def build_test_loader(
    dataset: ClassificationDataset, batch_size: int, *, num_workers: int, max_unreadable: int = 0
) -> "ImageTestLoader":
    """This rank's share of the images, each once: lists of their views, labels (N,) and places."""
    indices = evaluation_indices(len(dataset), distributed.rank(), distributed.world_size())
    loader = data_loader(Subset(dataset, indices), num_workers, collate_test, batch_size=batch_size)
    return ImageTestLoader(loader, max_unreadable)


class ImageTestLoader(NamedTuple):
    """A loader that can be gone through again and again, leaving out unreadable images."""

    loader: DataLoader
    max_unreadable: int

    def __iter__(self) -> Iterator:
        return leave_out_unreadable(self.loader, self.max_unreadable)

    def __len__(self) -> int:
        return len(self.loader)


def leave_out_unreadable(loader: DataLoader, limit: int) -> Iterator[tuple]:
    """The batches of `loader`; unreadable images are named in the log. Raises `UserError` past `limit` of them."""
    known: set[str] = set()
    for batch, unreadable in loader:
        for reason in unreadable:
            if reason in known:  # met again in a later epoch
                continue
            known.add(reason)
            logger.warning("%s Left out; %d so far.", reason, len(known))
            if len(known) > limit:
                raise UserError(f"{reason} It is number {len(known)}; data.max_unreadable allows {limit}.")
        if batch is not None:
            yield batch


def collate_train(samples: list) -> tuple[tuple[Tensor, dict] | None, list[str]]:
    """One batch of those that could be read, and why the others could not."""
    read, unreadable = _split(samples)
    if not read:
        return None, unreadable
    images, labels, names = zip(*read, strict=True)
    return (torch.stack(images), {"labels": torch.tensor(labels), "file_name": list(names)}), unreadable


def collate_test(samples: list) -> tuple[tuple[list, Tensor, list[str]] | None, list[str]]:
    read, unreadable = _split(samples)
    if not read:
        return None, unreadable
    views, labels, names = zip(*read, strict=True)
    return (list(views), torch.tensor(labels), list(names)), unreadable


def _split(samples: list) -> tuple[list, list[str]]:
    unreadable = [sample.reason for sample in samples if isinstance(sample, Unreadable)]
    return [sample for sample in samples if not isinstance(sample, Unreadable)], unreadable
