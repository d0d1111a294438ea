"""Images that cannot be read are named in the log, counted and skipped, up to a limit."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch.utils.data import DataLoader

from ..errors import UserError

logger = logging.getLogger(__name__)


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
                    raise UserError(f"{reason} It is number {len(known)}; data.max_unreadable allows {self.limit}.")
                logger.warning("%s Skipped; %d so far.", reason, len(known))
            if batch is not None:
                yield batch
            empty = 0 if batch is not None else empty + 1
            if empty > 100 + 10 * len(known):  # an endless loader goes through the same images again and again
                raise UserError(f"None of the images can be read: {reasons[-1]}")

    def __len__(self) -> int:
        return len(self.loader)
