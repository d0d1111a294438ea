"""Images that cannot be read are named in the log, counted and skipped, up to a limit."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from torch.utils.data import DataLoader

from ..errors import UserError
from .annotations import Annotations
from .images import image_size, wrong_size

logger = logging.getLogger(__name__)


def check_headers(data: Annotations, limit: int) -> None:
    """Raise `UserError` if more than `limit` images cannot be read, or are of another size than annotated.

    Only headers are read. For test sets, whose images would otherwise first be read after training.
    """

    def fault(k: int) -> str | None:
        try:
            found, wanted = image_size(data.path(k)), tuple(data.sizes[k].tolist())
        except UserError as error:
            return str(error)
        return str(wrong_size(data.path(k), found, wanted)) if sorted(found) != sorted(wanted) else None

    with ThreadPoolExecutor() as pool:
        faults = list(filter(None, pool.map(fault, range(len(data)))))
    if len(faults) > limit:
        raise too_many(faults[limit], limit + 1, limit)


def too_many(reason: str, count: int, limit: int) -> UserError:
    return UserError(f"{reason} This is unreadable image {count}; data.max_unreadable allows {limit}.")


class Unreadable(NamedTuple):
    """What a dataset returns for an image that cannot be read."""

    reason: str


def collate_readable(samples: list, collate: Callable[[list], tuple]) -> tuple[tuple | None, list[str]]:
    """A batch of the samples that could be read, None if there are none, and the reasons why others could not."""
    read = [sample for sample in samples if not isinstance(sample, Unreadable)]
    reasons = [sample.reason for sample in samples if isinstance(sample, Unreadable)]
    return (collate(read) if read else None), reasons


class ReadableBatches(NamedTuple):
    """The batches of `loader`, a loader of what `collate_readable` returns; may be iterated again and again.

    Raises `UserError` if more than `limit` different images are unreadable, or if all of them are.
    """

    loader: DataLoader
    limit: int

    def __iter__(self) -> Iterator[tuple]:
        known: set[str] = set()
        empty = 0  # batches in a row
        for batch, reasons in self.loader:
            for reason in reasons:
                if reason in known:  # seen in an earlier epoch
                    continue
                known.add(reason)
                if len(known) > self.limit:
                    raise too_many(reason, len(known), self.limit)
                logger.warning("%s Skipped; %d so far.", reason, len(known))
            if batch is not None:
                yield batch
            empty = 0 if batch is not None else empty + 1
            if empty > 100 + 10 * len(known):  # an endless loader goes through the same images again and again
                raise UserError(f"None of the images can be read: {reasons[-1]}")

    def __len__(self) -> int:
        return len(self.loader)
