"""The test side of a run: figures for its data sets, and the files that show them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import nn

from ..data import Annotations, DetectionDataset, build_test_loader
from ..training.precise_bn import update_precise_bn
from . import evaluate, score_classifiers
from .report import write_json
from .samples import save_samples


class DetectionTest:
    """Scores `model`, as it is when called, on each of `sets`, and keeps the last predictions.

    The figures of the first set bear plain names ("bbox/AP"), those of further sets their set's name before
    ("voc_2012_val/bbox/AP"), and so do the files that `save` leaves. `backend` is that of `coco_metrics`.
    """

    def __init__(
        self,
        model: nn.Module,
        sets: list[Annotations],
        masks: bool,
        num_workers: int,
        backend: str,
        max_unreadable: int = 0,
    ) -> None:
        self.model, self.sets, self.masks, self.backend = model, sets, masks, backend
        self.loaders = [
            build_test_loader(
                DetectionDataset([s], train=False), num_workers=num_workers, max_unreadable=max_unreadable
            )
            for s in sets
        ]
        self.predictions: list[list[dict]] = [[] for _ in sets]

    def __call__(self) -> dict[str, float]:
        """Figures in percent, the same on every rank."""
        metrics = {}
        for k, (data, loader) in enumerate(zip(self.sets, self.loaders, strict=True)):
            figures, self.predictions[k] = evaluate(self.model, loader, data, self.masks, self.backend)
            prefix = f"{data.name}/" if k else ""
            metrics |= {prefix + name: value for name, value in figures.items()}
        return metrics

    def save(self, output_dir: Path, samples: int, sample_score: float) -> None:
        """Write `predictions.json` and `samples/*.png`."""
        for k, (data, predictions) in enumerate(zip(self.sets, self.predictions, strict=True)):
            suffix = f"_{data.name}" if k else ""
            write_json(output_dir / f"predictions{suffix}.json", predictions)
            save_samples(data, predictions, output_dir / f"samples{suffix}", samples, sample_score)


class ClassificationTest:
    """Scores `models`, as they are when called: `top1` and `top5` in percent, the same on every rank.

    With `precise_bn`, the first model's BN statistics are taken anew over so many batches of `build_train_loader`.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        loader: Iterable,
        precise_bn: int = 0,
        build_train_loader: Callable[[], Iterable] | None = None,
    ) -> None:
        self.models, self.loader = models, loader
        self.precise_bn, self.build_train_loader = precise_bn, build_train_loader

    def __call__(self) -> dict[str, float]:
        if self.precise_bn and self.build_train_loader is not None:
            update_precise_bn(self.models[0], self.build_train_loader(), self.precise_bn)
        return score_classifiers(self.models, self.loader)
