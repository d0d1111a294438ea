"""What a run reports as it goes: the progress bar, log lines, metrics.jsonl and TensorBoard."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .. import distributed

logger = logging.getLogger(__name__)

FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")


def set_up_logging() -> None:
    """Send the package's log to stdout on the main rank, nowhere on the others, and keep it for `log_to`."""
    package = logging.getLogger("resnet_backbones")
    package.setLevel(logging.INFO)
    package.propagate = False
    package.handlers.clear()
    if not distributed.is_main():
        package.addHandler(logging.NullHandler())
        return
    handlers = [logging.StreamHandler(sys.stdout), MemoryHandler(capacity=1)]
    for handler in handlers:
        handler.setFormatter(FORMAT)
        package.addHandler(handler)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = handlers


def log_to(file: Path) -> None:
    """On the main rank, append to `file` what has been logged since `set_up_logging` and what will be."""
    for handler in logging.getLogger("resnet_backbones").handlers:
        if isinstance(handler, MemoryHandler):
            target = logging.FileHandler(file)
            target.setFormatter(FORMAT)
            handler.setTarget(target)
            handler.flush()


class MetricLogger:
    """Logs steps `start` + 1 … `solver.max_iter` every `solver.log_period` steps; only the main rank writes.

    A resumed run continues metrics.jsonl after the rows of the steps up to `start`, a new one starts it over.
    """

    def __init__(self, output_dir: Path, start: int, solver: DictConfig) -> None:
        self.max_iter, self.batch_size, self.period = solver.max_iter, solver.batch_size, solver.log_period
        self.sums, self.count, self.waited = {}, 0, 0.0
        self.active, self.open = distributed.is_main(), ExitStack()
        if self.active:
            rows = rows_until(output_dir / "metrics.jsonl", start)
            self.file = self.open.enter_context((output_dir / "metrics.jsonl").open("w"))
            self.file.writelines(rows)
            self.board = self.open.enter_context(SummaryWriter(str(output_dir / "tensorboard"), purge_step=start))
            bar = tqdm(initial=start, total=self.max_iter, unit="step", dynamic_ncols=True, disable=None)
            self.bar = self.open.enter_context(bar)
            self.open.enter_context(logging_redirect_tqdm([logging.getLogger("resnet_backbones")]))
        self.mark = (time.perf_counter(), start)

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, *_) -> None:
        self.open.close()

    def timed(self, batches: Iterator) -> Iterator:
        """`batches`, with the time spent waiting for them."""
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            yield batch

    def step(self, step: int, outputs: dict[str, Tensor] | None, lr: float) -> None:
        """Call after a step with its losses and other metrics, None if it was skipped; they stay on their device."""
        if outputs is not None:
            self.sums = {name: self.sums.get(name, 0) + value.detach() for name, value in outputs.items()}
            self.count += 1
        if self.active:
            self.bar.update()
        if self.count and (step % self.period == 0 or step == self.max_iter):
            self.record(step, lr)

    def record(self, step: int, lr: float) -> None:
        """Log losses, averaged since the last record and over ranks, learning rate, images per second, the share of
        the time spent waiting for data, and the time left."""
        metrics = distributed.mean({name: value / self.count for name, value in self.sums.items()})
        seconds, steps = time.perf_counter() - self.mark[0], max(step - self.mark[1], 1)
        wait, speed = self.waited / max(seconds, 1e-9), self.batch_size * steps / max(seconds, 1e-9)
        self.sums, self.count, self.waited, self.mark = {}, 0, 0.0, (time.perf_counter(), step)
        if not self.active:
            return
        loss = sum(value for name, value in metrics.items() if name.startswith("loss"))
        row = {"loss": loss, **metrics, "lr": lr, "images_per_second": speed, "data_wait": wait}
        self.scalars(step, row)
        self.bar.set_postfix(loss=f"{loss:.3f}", images_s=f"{speed:.1f}", refresh=False)
        if self.bar.disable:  # no terminal: lines instead of a bar
            left = time.strftime("%H:%M:%S", time.gmtime(seconds / steps * (self.max_iter - step)))
            parts = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            logger.info(
                "step %d/%d  loss %.3f  %s  lr %.2g  %.1f images/s  data wait %.0f %%  ETA %s",
                *(step, self.max_iter, loss, parts, lr, speed, 100 * wait, left),
            )

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """Append one row to metrics.jsonl and TensorBoard."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, **row}) + "\n")
        self.file.flush()
        for name, value in row.items():
            self.board.add_scalar(name, value, step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent here, in an evaluation, does not count in images per second."""
        start = time.perf_counter()
        yield
        self.mark = (self.mark[0] + time.perf_counter() - start, self.mark[1])


def rows_until(path: Path, step: int) -> list[str]:
    """The lines of an earlier run's metrics.jsonl up to `step`; the evaluation at `step` itself is repeated."""
    if not step or not path.is_file():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
            if row["step"] < step or (row["step"] == step and "loss" in row):
                rows.append(line)
        except (ValueError, LookupError, TypeError, RecursionError):  # cut off when the run was killed
            continue
    return rows
