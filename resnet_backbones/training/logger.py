"""What a run tells while it goes: the progress bar, log lines, metrics.jsonl and TensorBoard."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .. import distributed

logger = logging.getLogger(__name__)


def set_up_logging(log_file: Path | None) -> None:
    """The package's log to stdout and `log_file` on the main rank, to nowhere on the others."""
    package = logging.getLogger("resnet_backbones")
    package.setLevel(logging.INFO)
    package.propagate = False
    package.handlers.clear()
    if not distributed.is_main():
        package.addHandler(logging.NullHandler())
        return
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if log_file is not None:
        handlers.append(logging.FileHandler(log_file, mode="a"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        package.addHandler(handler)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = handlers


class Journal:
    """Progress of steps `start` … `max_iter`, recorded every `period` steps; only the main rank writes.

    A resumed run goes on in metrics.jsonl behind the rows of the steps up to `start`, a fresh one begins it anew.
    """

    def __init__(self, output_dir: Path, start: int, max_iter: int, batch_size: int, period: int) -> None:
        self.max_iter, self.batch_size, self.period = max_iter, batch_size, period
        self.sums, self.count, self.waited = {}, 0, 0.0
        self.active = distributed.is_main()
        if not self.active:
            return
        rows = _rows_until(output_dir / "metrics.jsonl", start)
        self.file = open(output_dir / "metrics.jsonl", "w")  # noqa: SIM115, closed in close()
        self.file.writelines(rows)
        self.board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=start)
        self.bar = tqdm(initial=start, total=max_iter, unit="step", dynamic_ncols=True, disable=None)
        self.redirect = logging_redirect_tqdm([logging.getLogger("resnet_backbones")])
        self.redirect.__enter__()
        self.mark = (time.perf_counter(), start)

    def due(self, step: int) -> bool:
        """Whether `step` (finished steps) is to be recorded."""
        return step % self.period == 0 or step == self.max_iter

    def waiting(self, batches: Iterator) -> Iterator:
        """`batches`, and how long each was waited for."""
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            yield batch

    def add(self, losses: dict[str, Tensor], finite: Tensor) -> None:
        """One step's losses and other figures, if it was `finite`; all stays on its device until `record`."""
        taken = {name: torch.where(finite, value.detach(), 0) for name, value in losses.items()}
        self.sums = {name: self.sums.get(name, 0) + value for name, value in taken.items()}
        self.count = self.count + finite

    def record(self, step: int, lr: float) -> None:
        """Write down the state after `step` finished steps: losses, averaged since the last record and over ranks,
        learning rate, images a second, the share of the time spent waiting for data, time left.
        """
        if not self.count:
            return  # all steps since the last record were left out
        losses = distributed.mean({name: value / self.count for name, value in self.sums.items()})
        waited, self.sums, self.count, self.waited = self.waited, {}, 0, 0.0
        if not self.active:
            return
        now, (then, since) = time.perf_counter(), self.mark
        self.mark = (now, step)
        seconds = (now - then) / max(step - since, 1)
        total = sum(value for name, value in losses.items() if name.startswith("loss"))
        wait = waited / max(now - then, 1e-9)
        row = {
            "step": step,
            "loss": total,
            **losses,
            "lr": lr,
            "images_per_second": self.batch_size / seconds,
            "data_wait": wait,
        }
        self.scalars(step, row)
        self.bar.set_postfix(loss=f"{total:.3f}", images_s=f"{self.batch_size / seconds:.1f}", refresh=False)
        if self.bar.disable:  # no terminal: lines instead of a bar
            left = time.strftime("%H:%M:%S", time.gmtime(seconds * (self.max_iter - step)))
            parts = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            logger.info(
                "step %d/%d  loss %.3f  %s  lr %.2g  %.1f images/s  data wait %.0f %%  ETA %s",
                *(step, self.max_iter, total, parts, lr, self.batch_size / seconds, 100 * wait, left),
            )

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """Append one row to metrics.jsonl and TensorBoard."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, **row}) + "\n")
        self.file.flush()
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, step)

    def advance(self, outputs: dict[str, Tensor] | None, finite: Tensor) -> None:
        """After a step, which gave these figures if it was `finite`; None where it is known to be left out."""
        if outputs is not None:
            self.add(outputs, finite)
        if self.active:
            self.bar.update()

    def pause(self) -> None:
        """Leave out of images/s what has passed since the last record (an evaluation)."""
        if self.active:
            self.mark = (time.perf_counter(), self.mark[1])

    def close(self) -> None:
        if self.active:
            self.redirect.__exit__(None, None, None)
            self.bar.close()
            self.board.close()
            self.file.close()


def _rows_until(path: Path, step: int) -> list[str]:
    """The lines of an earlier run's metrics.jsonl up to `step`, whose figures a resumed run finds again."""
    if not step or not path.is_file():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
            known = row["step"] < step or (row["step"] == step and "loss" in row)
        except (ValueError, LookupError, TypeError, RecursionError):  # cut off, or not ours
            continue
        if known:
            rows.append(line)
    return rows
