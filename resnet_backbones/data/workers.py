"""The loader's worker processes: what each is reading, so that one that dies can be blamed on a file."""

import os
import re
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from ..errors import UserError

WATCHED: "weakref.WeakSet[WatchedDataset]" = weakref.WeakSet()


class WatchedDataset(Dataset):
    """`dataset`, whose `place(index)` names a file, with a note of what each of `num_workers` workers is reading."""

    def __init__(self, dataset: Dataset, num_workers: int) -> None:
        self.dataset = dataset
        self.notes = torch.zeros(num_workers, 2, dtype=torch.int64).share_memory_()  # process, index + 1
        WATCHED.add(self)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> Any:
        worker = get_worker_info()
        index = item[0] if isinstance(item, tuple) else item
        self.notes[worker.id] = torch.tensor([os.getpid(), index + 1])
        sample = self.dataset[item]
        self.notes[worker.id, 1] = 0
        return sample


def start_worker(worker: int) -> None:
    """What a worker does first: it is spared a signal to all processes of a run, which the run still needs it to obey.

    SIGUSR1 is ignored, and of SIGTERM the first.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


@contextmanager
def name_dead_workers() -> Iterator[None]:
    """Make torch's error about a worker that died a `UserError` that names the file it was reading."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        died = " ".join(str(error).split())
        processes = {int(number) for number in re.findall(r"\d+", died)}
        for watched in list(WATCHED):
            for process, noted in watched.notes.tolist():
                if process in processes and noted:
                    place = watched.dataset.place(noted - 1)
                    raise UserError(f"{died.rstrip('.')} while reading {place}.") from error
        raise UserError(
            f"{died.rstrip('.')} while it read no file; a machine short of memory kills workers: lower "
            "data.num_workers?"
        ) from error
