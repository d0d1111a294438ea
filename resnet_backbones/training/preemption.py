"""SIGTERM and SIGUSR1, by which clusters announce that a job will be ended: finish the step, save, leave."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .. import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
INTERRUPTED = 75  # exit status: saved, to be gone on with (EX_TEMPFAIL of sysexits.h)


class Interruption:
    """Inside this context the first signal is noted, for `agreed` to tell; a second one ends the process at once.

    The process then leaves with status 128 + the signal's number, as a shell reports it.
    """

    def __init__(self) -> None:
        self.process, self.signal, self.nothing_to_save = os.getpid(), 0, False

    def __enter__(self) -> "Interruption":
        self.replaced = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.replaced.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process or self.signal:
            os._exit(128 + number)
        self.signal = number
        if self.nothing_to_save:
            raise SystemExit(INTERRUPTED)

    def agreed(self) -> bool:
        """Whether any rank has been signalled; the same answer on all of them, who all have to ask."""
        return distributed.largest([self.signal])[0] > 0

    @contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """Inside, where all is saved, the first signal already leaves with `INTERRUPTED`."""
        self.nothing_to_save = True
        if self.signal:
            raise SystemExit(INTERRUPTED)
        yield
        self.nothing_to_save = False
