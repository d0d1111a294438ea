"""Steps whose loss or gradients are not finite: left out, counted, and kept for inspection."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from . import distributed
from .errors import UserError

logger = logging.getLogger(__name__)


class NonFinite:
    """Leaves out the steps of a run whose loss or gradients are not finite on any rank.

    Args:
        model: whose BN statistics such a step would spoil; they are put back.
        limit: so many steps may be left out; one more raises `UserError`.
        output_dir: gets `nonfinite-STEP-RANK.pt` of each, with its images, targets and losses.
    """

    def __init__(self, model: nn.Module, limit: int, output_dir: Path) -> None:
        self.limit, self.output_dir, self.count = limit, output_dir, 0
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
        self.statistics = [statistic for m in norms for statistic in m.buffers(recurse=False)]
        self.kept = [statistic.clone() for statistic in self.statistics]

    def begin_step(self) -> None:
        for kept, statistic in zip(self.kept, self.statistics, strict=True):
            kept.copy_(statistic)

    def leave_out(self, finite: Tensor, step: int, batches: list[tuple]) -> bool:
        """Whether all ranks must leave out `step`, whose loss and gradients are `finite` (a bool) on this one.

        Args:
            batches: what was computed in the step, (images, targets, losses by name) of each part.
        """
        finite_here = bool(finite)
        if distributed.largest([not finite_here])[0] == 0:
            return False
        for kept, statistic in zip(self.kept, self.statistics, strict=True):
            statistic.copy_(kept)
        self.count += 1
        path = self.output_dir / f"nonfinite-{step}-{distributed.rank()}.pt"
        content = [{"images": i, "targets": t, "losses": {n: v.detach() for n, v in o.items()}} for i, t, o in batches]
        torch.save({"step": step, "parts": content}, path)
        message = f"{_fault(batches)} at step {step} {_described(batches)}; they are kept in {path}"
        if self.count > self.limit:
            before = f" {self.limit} steps before it were left out (solver.max_nonfinite)." if self.limit else ""
            raise UserError(f"{message}.{before} Lower solver.lr?")
        logger.warning("%s. Left out; %d so far.", message, self.count)
        return True


def _fault(batches: list[tuple]) -> str:
    loss = sum(value.detach() for _, _, losses in batches for name, value in losses.items() if name.startswith("loss"))
    return "The gradients are not finite" if torch.isfinite(loss) else "The loss is not finite"


def _described(batches: list[tuple]) -> str:
    """The loss terms and the images of the first part that is not finite, or of the first."""
    parts = [(targets, losses) for _, targets, losses in batches]
    targets, losses = next((p for p in parts if not all(torch.isfinite(v).all() for v in p[1].values())), parts[0])
    terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items() if name.startswith("loss"))
    files = targets["file_name"] if isinstance(targets, dict) else [target["file_name"] for target in targets]
    return f"({terms}), images {', '.join(files[:8])}{' …' if len(files) > 8 else ''}"
