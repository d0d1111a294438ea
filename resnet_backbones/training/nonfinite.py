"""Steps whose loss or gradients are not finite: left out, counted, and kept for inspection."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import distributed
from ..errors import UserError

logger = logging.getLogger(__name__)


class NonFinite:
    """Leaves out the steps of a run whose loss or gradients are not finite on any rank.

    Args:
        model: whose BN statistics such a step would spoil; they are put back.
        limit: so many steps may be left out; one more raises `UserError`.
        output_dir: gets `nonfinite-STEP-RANK.pt` of each, with its images, targets and losses.
        late: the host does not wait for the device's verdict on a step but reads it after the next one. The device has
            to leave out the update itself then, as torch's fused optimisers do by their `found_inf`.
    """

    def __init__(self, model: nn.Module, limit: int, output_dir: Path, late: bool = False) -> None:
        self.limit, self.output_dir, self.late, self.count = limit, output_dir, late, 0
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
        self.statistics = [statistic for m in norms for statistic in m.buffers(recurse=False)]
        self.kept = [statistic.clone() for statistic in self.statistics]
        self.finite = torch.tensor(True)  # the verdict on the last step, on the device
        self.unread: list[tuple[Callable[[], bool], int, list[tuple]]] = []

    def begin_step(self) -> None:
        for kept, statistic in zip(self.kept, self.statistics, strict=True):
            kept.copy_(statistic)

    def leave_out(self, finite: Tensor, step: int, batches: list[tuple]) -> bool:
        """Whether all ranks must leave out `step`, whose loss and gradients are `finite` (a bool) on this one.

        With `late` it is False, and `self.finite` what the device has to go by.

        Args:
            batches: what was computed in the step, (images, targets, losses by name) of each part.
        """
        self.finite = distributed.total((~finite).int()) == 0
        for kept, statistic in zip(self.kept, self.statistics, strict=True):
            torch.where(self.finite, statistic, kept, out=statistic)
        batches = [(i, t, {name: value.detach() for name, value in o.items()}) for i, t, o in batches]
        self.unread.append((_on_its_way_to_the_host(self.finite), step, batches))
        if not self.late:
            return self.read()
        self.read(but=1)
        return False

    def read(self, but: int = 0) -> bool:
        """Report what was left out of all steps but the last `but`; whether the last of these was.

        A run with `late` has to, before it saves or scores: the limit may have been passed.
        """
        left_out = False
        while len(self.unread) > but:
            verdict, step, batches = self.unread.pop(0)
            left_out = not verdict()
            if left_out:
                self._report(step, batches)
        return left_out

    def _report(self, step: int, batches: list[tuple]) -> None:
        self.count += 1
        path = self.output_dir / f"nonfinite-{step}-{distributed.rank()}.pt"
        parts = [{"images": images, "targets": targets, "losses": losses} for images, targets, losses in batches]
        torch.save({"step": step, "parts": parts}, path)
        message = f"{_fault(batches)} at step {step} {_described(batches)}; they are kept in {path}"
        if self.count > self.limit:
            before = f" {self.limit} steps before it were left out (solver.max_nonfinite)." if self.limit else ""
            raise UserError(f"{message}.{before} Lower solver.lr?")
        logger.warning("%s. Left out; %d so far.", message, self.count)


def _on_its_way_to_the_host(flag: Tensor) -> Callable[[], bool]:
    """Gives the value of `flag` when called; that waits for what the device was given so far, not for what follows."""
    copy = flag.to("cpu", non_blocking=True)
    if not flag.is_cuda:
        return copy.item
    copied = torch.cuda.Event()
    copied.record()

    def value() -> bool:
        copied.synchronize()
        return copy.item()

    return value


def _fault(batches: list[tuple]) -> str:
    loss = sum(value for _, _, losses in batches for name, value in losses.items() if name.startswith("loss"))
    return "The gradients are not finite" if torch.isfinite(loss) else "The loss is not finite"


def _described(batches: list[tuple]) -> str:
    """The loss terms and the images of the first part that is not finite, or of the first."""
    parts = [(targets, losses) for _, targets, losses in batches]
    targets, losses = next((p for p in parts if not all(torch.isfinite(v).all() for v in p[1].values())), parts[0])
    terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items() if name.startswith("loss"))
    files = targets["file_name"] if isinstance(targets, dict) else [target["file_name"] for target in targets]
    return f"({terms}), images {', '.join(files[:8])}{' …' if len(files) > 8 else ''}"
