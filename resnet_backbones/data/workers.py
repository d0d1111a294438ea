"""The loader's worker processes. Each notes which file it is reading, so that an error can name it if one dies."""

import atexit
import multiprocessing
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
    """`dataset`, which has a method `path(index)`, with a note of what each of `num_workers` workers is reading."""

    def __init__(self, dataset: Dataset, num_workers: int) -> None:
        self.dataset = dataset
        self.notes = torch.zeros(num_workers, 2, dtype=torch.int64).share_memory_()  # process id, index + 1 or 0
        WATCHED.add(self)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> Any:
        note = self.notes[get_worker_info().id]
        note[0], note[1] = os.getpid(), (item[0] if isinstance(item, tuple) else item) + 1
        sample = self.dataset[item]
        note[1] = 0
        return sample

    def path_read_by(self, processes: set[int]) -> str | None:
        """The file that one of `processes` is reading."""
        reading = (noted - 1 for process, noted in self.notes.tolist() if noted and process in processes)
        return next(map(self.dataset.path, reading), None)


def start_worker(worker: int) -> None:
    """Make a worker ignore SIGUSR1 and the first SIGTERM.

    Schedulers send them to all processes of a run, and the main one still needs its workers to finish the step.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


@atexit.register
def end_workers() -> None:
    """Send the workers a first SIGTERM, which they ignore, before the one that multiprocessing sends at exit."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their death as an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.terminate()


@contextmanager
def name_dead_workers() -> Iterator[None]:
    """Turn torch's error about a dead worker into a `UserError` that names the file it was reading.

    torch raises it from a signal handler, anywhere in the main process.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        message = " ".join(str(error).split()).rstrip(".")
        processes = {int(number) for number in re.findall(r"\d+", message)}
        path = next(filter(None, (watched.path_read_by(processes) for watched in WATCHED)), None)
        if path is not None:
            raise UserError(f"{message} while reading {path}.") from error
        raise UserError(
            f"{message} while it was not reading a file. The system kills workers when memory runs out; lower "
            "data.num_workers."
        ) from error
