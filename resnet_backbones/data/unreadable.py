"""What happens to images that cannot be read: they are named, counted and left out, up to a limit."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

from torch.utils.data import DataLoader

from ..errors import UserError

logger = logging.getLogger(__name__)


class Unreadable(NamedTuple):
    """Stands for an image that could not be read, with the reason."""

    reason: str


class ReadableBatches(NamedTuple):
    """The batches of a loader of (batch or None, reasons) without what could not be read; iterates again and again.

    Unreadable images are named in the log. Raises `UserError` past `limit` of them, and where an endless loader gives
    nothing else.
    """

    loader: DataLoader
    limit: int

    def __iter__(self) -> Iterator[tuple]:
        known: set[str] = set()
        empty = 0  # batches in a row
        for batch, unreadable in self.loader:
            for reason in unreadable:
                if reason in known:  # met again in a later epoch
                    continue
                known.add(reason)
                if len(known) > self.limit:
                    raise UserError(f"{reason} It is number {len(known)}; data.max_unreadable allows {self.limit}.")
                logger.warning("%s Left out; %d so far.", reason, len(known))
            if batch is not None:
                yield batch
            empty = 0 if batch is not None else empty + 1
            if empty > 100 + 10 * len(known):  # each of them again and again
                raise UserError(f"None of the images can be read: {unreadable[-1]}")

    def __len__(self) -> int:
        return len(self.loader)


def split_unreadable(samples: list) -> tuple[list, list[str]]:
    """The samples that could be read, and why the others could not."""
    unreadable = [sample.reason for sample in samples if isinstance(sample, Unreadable)]
    return [sample for sample in samples if not isinstance(sample, Unreadable)], unreadable
