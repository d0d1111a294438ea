"""SIGTERM and SIGUSR1, with which clusters announce the end of a job: finish the step, save, exit."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .. import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PREEMPTED = 75  # exit status: saved, to be resumed (EX_TEMPFAIL of sysexits.h)


class Preemption:
    """A context in which the first signal is noted for `requested`; a second one ends the process as usual."""

    def __init__(self) -> None:
        self.signaled, self.exit_now = False, False

    def __enter__(self) -> "Preemption":
        self.replaced = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.replaced.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signaled = True
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self.exit_now:
            raise SystemExit(PREEMPTED)

    def requested(self) -> bool:
        """Whether any rank was signaled; every rank must ask, and gets the same answer."""
        return distributed.largest([self.signaled])[0] > 0

    @contextmanager
    def exits_at_once(self) -> Iterator[None]:
        """In the block, where everything is already saved, a signal exits with `PREEMPTED` without waiting."""
        self.exit_now = True
        if self.signaled:
            raise SystemExit(PREEMPTED)
        yield
        self.exit_now = False
