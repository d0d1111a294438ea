"""Steps whose loss or gradients are not finite: skipped, counted, and saved for inspection."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import distributed
from ..errors import UserError

logger = logging.getLogger(__name__)


class NonFiniteSteps:
    """Decides which steps of a run are skipped, on all ranks alike.

    Args:
        model: whose BN statistics such a step would spoil; they are restored.
        limit: number of steps that may be skipped; one more raises `UserError`.
        output_dir: where `nonfinite-STEP-RANK.pt` is saved for each, with its images, targets and losses.
    """

    def __init__(self, model: nn.Module, limit: int, output_dir: Path) -> None:
        self.limit, self.output_dir, self.count = limit, output_dir, 0
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self.statistics = [statistic for norm in norms for statistic in norm.buffers(recurse=False)]
        self.kept = [statistic.clone() for statistic in self.statistics]

    def keep_statistics(self) -> None:
        """Call before a step."""
        for kept, statistic in zip(self.kept, self.statistics, strict=True):
            kept.copy_(statistic)

    def skip(self, finite: Tensor, step: int, batches: list[tuple]) -> bool:
        """Whether all ranks must skip `step`: its loss or gradients are not `finite` (a bool) on one of them.

        Args:
            batches: what was computed in the step, (images, targets, losses by name) of each part.
        """
        if distributed.total((~finite).int()).item() == 0:
            return False
        for kept, statistic in zip(self.kept, self.statistics, strict=True):
            statistic.copy_(kept)
        self.count += 1
        path = self.output_dir / f"nonfinite-{step}-{distributed.rank()}.pt"
        parts = [
            {"images": images, "targets": targets, "losses": {name: v.detach() for name, v in losses.items()}}
            for images, targets, losses in batches
        ]
        torch.save({"step": step, "parts": parts}, path)
        message = f"{fault(parts)} at step {step} {description(parts)}; the batch is saved in {path}"
        if self.count > self.limit:
            before = f" {self.limit} steps before it were skipped (solver.max_nonfinite)." if self.limit else ""
            raise UserError(f"{message}.{before} Lower solver.lr?")
        logger.warning("%s. Skipped, %d so far.", message, self.count)
        return True


def fault(parts: list[dict]) -> str:
    losses = [value for part in parts for name, value in part["losses"].items() if name.startswith("loss")]
    return "The gradients are not finite" if torch.isfinite(sum(losses)) else "The loss is not finite"


def description(parts: list[dict]) -> str:
    """The loss terms and the images of the first part that is not finite, or of the first."""
    part = next((p for p in parts if not all(torch.isfinite(v).all() for v in p["losses"].values())), parts[0])
    terms = ", ".join(f"{n} {value.item():.3g}" for n, value in part["losses"].items() if n.startswith("loss"))
    targets = part["targets"]
    files = targets["file_name"] if isinstance(targets, dict) else [target["file_name"] for target in targets]
    return f"({terms}), images {', '.join(files[:8])}{' …' if len(files) > 8 else ''}"
