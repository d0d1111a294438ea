"""The job of `pretrain`: images, classifier, training and evaluation, from a config."""

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import distributed
from ..analysis.cost import analyze
from ..classifiers import build_classifier, load_classifier
from ..data.augmentation import train_transform
from ..data.classification import ClassificationDataset, build_test_loader, build_train_loader
from ..data.imagenet import FileImages, check_images, load_images
from ..data.shards import ShardImages
from ..data.views import build_views
from ..errors import UserError, errors_about
from ..evaluation.classification import evaluate_classifiers
from ..evaluation.report import metrics_table, write_json
from ..models.compile import compile_backbone
from ..models.fuse import fold_norms
from ..preprocessing import Preprocessing, input_channels
from ..training.curves import draw_comparison, draw_curves, read_rows
from ..training.loop import fit, memory_format, set_seed
from ..training.precise_bn import update_precise_bn
from ..training.solver import in_iterations
from ..weights import save_safetensors
from .classifiers import (
    backbone_options,
    build_for_training,
    describe,
    load_ensemble,
    load_test_images,
    resolve_preprocessing,
    set_preprocessing,
)
from .reporting import classification_report
from .run import check_weights, for_inference, open_output, start, trial

logger = logging.getLogger(__name__)


def check(config: DictConfig, eval_only: bool) -> None:
    """Raise `UserError` if a classifier cannot be built or weights or images are missing, without reading them."""
    compared = [] if eval_only else config.compare
    with trial():
        for entry in compared or [config.backbone.name]:
            with errors_about("compare" if compared else "backbone"):
                one = with_backbone(config, entry) if compared else config
                build_classifier(num_classes=2, **backbone_options(one) | {"weights": None})
    check_weights(config, config.ensemble if eval_only else ())
    for split in [config.data.val] if eval_only else [config.data.train, config.data.val]:
        check_images(config.data.root, split)


def train(given: DictConfig, resume: bool) -> None:
    """Train and evaluate; writes weights, metrics, `curves.png` and `report.html` to `output_dir`."""
    device, config = start(given)
    output_dir = Path(config.output_dir).expanduser()
    images = load_images(config.data.root, config.data.train, config.data.classes)
    val_images = load_images(config.data.root, config.data.val, images.classes)
    solver = in_iterations(config.solver, len(images))
    counts = len(images), len(images.classes), solver.max_iter, device
    logger.info("images: %d, classes: %d, steps: %d, on %s", *counts)

    model = build_for_training(config, images.classes)
    preprocessing = resolve_preprocessing(config, model.backbone.preprocessing)
    if config.preprocessing.per_pixel_mean:
        preprocessing = with_mean_image(preprocessing, view_loader(config, images, preprocessing, "center"))
    set_preprocessing(model, preprocessing, config.augmentation)
    fold_norms(model.to(device))
    model.to(memory_format=memory_format(model, solver))
    if solver.compile != "none":
        compile_backbone(model.backbone, solver.compile)
    loader = train_loader(config, images, preprocessing)
    val_loader = view_loader(config, val_images, preprocessing, config.evaluation.views)

    answers: list[dict] = []

    def evaluate() -> dict[str, float]:
        if config.evaluation.precise_bn:
            update_precise_bn(model, loader(), config.evaluation.precise_bn)
        metrics, answers[:] = evaluate_classifiers([for_inference(model, solver)], val_loader)
        return metrics

    metadata = describe(model, images.classes, config)
    set_seed(config.seed + distributed.rank(), solver.deterministic)
    epoch = math.ceil(len(images) / solver.batch_size)
    period = epoch if config.evaluation.period is None else config.evaluation.period
    options = {"resume": resume, "on_start": partial(open_output, given), "patience": config.evaluation.patience}
    metrics = fit(model, loader, solver, output_dir, evaluate, period, "top1", metadata, **options)
    if distributed.is_main():
        save_safetensors(output_dir / "model.safetensors", model.state_dict(), metadata | {"metrics": metrics})
        draw_curves(output_dir, output_dir / "curves.png")
        save_metrics(metrics, output_dir)
        classification_report(output_dir, val_images, answers, config)
        logger.info("report.html, model.safetensors, metrics and curves.png are in %s", output_dir.absolute())


def evaluate(given: DictConfig) -> None:
    """Evaluate `weights`, together with `ensemble`; writes `metrics.json` and `report.html` to `output_dir`."""
    device, config = start(given)
    models = load_ensemble(config)
    data = config.data
    images = load_test_images(data.root, data.val, models[0], config.weights, data.classes)
    loader = view_loader(config, images, models[0].preprocessing, config.evaluation.views)
    models = [for_inference(model.to(device), config.solver) for model in models]
    output_dir = open_output(given)
    metrics, answers = evaluate_classifiers(models, loader)
    if distributed.is_main():
        save_metrics(metrics, output_dir)
        classification_report(output_dir, images, answers, config)


def compare(config: DictConfig, resume: bool) -> list[dict]:
    """Train each backbone of `compare` in a folder of its own, and write their costs and errors.

    Writes their error curves to `comparison.png` and the returned rows, from `comparison_row`, to `comparison.json`.
    """
    output_dir, runs, rows = Path(config.output_dir).expanduser(), {}, []
    for entry in config.compare:
        runs[entry] = output_dir / entry.replace(" ", "-")
        train(OmegaConf.merge(with_backbone(config, entry), {"output_dir": str(runs[entry])}), resume)
        if distributed.is_main():
            rows.append(comparison_row(entry, runs[entry]))
            write_json(output_dir / "comparison.json", {"networks": rows})
    if distributed.is_main():
        draw_comparison(runs, output_dir / "comparison.png")
        logger.info("\n%s", comparison_table(rows))
    return rows


def with_backbone(config: DictConfig, entry: str) -> DictConfig:
    """`config` with the backbone of an `entry` of `compare`, "NAME key=value …"."""
    name, *pairs = entry.split()
    try:
        return OmegaConf.merge(config, {"backbone": OmegaConf.merge({"name": name}, OmegaConf.from_dotlist(pairs))})
    except OmegaConfBaseException as error:
        raise UserError(f"{entry!r}: {str(error).splitlines()[0]}") from error


def comparison_row(name: str, folder: Path) -> dict:
    """The costs and errors of the run in `folder`.

    Parameters and FLOPs of the classifier for one image, its final error on the validation images and its mean error
    over the last logged training steps, both in percent, and the seconds that its training steps took.
    """
    model, log = load_classifier(str(folder / "model.safetensors")), read_rows(folder)
    size = model.preprocessing.size
    total = analyze(model, (size, size), input_channels(model.backbone))["total"]
    steps = [row for row in log if "images_per_second" in row]
    batch = OmegaConf.load(folder / "config.yaml").solver.batch_size
    starts = [0, *(row["step"] for row in steps[:-1])]
    seconds = sum(
        (row["step"] - start) * batch / row["images_per_second"] for row, start in zip(steps, starts, strict=True)
    )
    error = 100 - next(row["top1"] for row in reversed(log) if "top1" in row)
    training_error = next(row["error"] for row in reversed(steps))
    costs = {"parameters": total["parameters"], "flops": total["flops"], "seconds": seconds}
    return {"name": name, **costs, "error": error, "training_error": training_error}


def comparison_table(rows: list[dict]) -> str:
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'':{width}}{'parameters':>12}{'MFLOPs':>9}{'seconds':>9}{'error':>8}{'in training':>13}"]
    for row in rows:
        costs = f"{row['parameters']:>12,}{row['flops'] / 1e6:>9.1f}{row['seconds']:>9.0f}"
        trained = f"{row['training_error']:>13.2f}" if "training_error" in row else f"{'-':>13}"
        lines.append(f"{row['name']:{width}}{costs}{row['error']:>8.2f}{trained}")
    return "\n".join(lines)


def save_metrics(metrics: dict[str, float], output_dir: Path) -> None:
    write_json(output_dir / "metrics.json", metrics)
    logger.info("metrics in percent:\n%s", metrics_table(metrics))


def train_loader(config: DictConfig, images: FileImages | ShardImages, preprocessing: Preprocessing) -> partial:
    """`build_train_loader(start=…)`, for `fit`."""
    return partial(
        build_train_loader,
        ClassificationDataset(images, train_transform(config.augmentation, preprocessing), len(preprocessing.std)),
        config.solver.batch_size,
        num_workers=config.data.num_workers,
        seed=config.seed,
        accumulate=config.solver.accumulate,
        repeats=config.data.repeats,
        max_unreadable=config.data.max_unreadable,
    )


def view_loader(
    config: DictConfig, images: FileImages | ShardImages, preprocessing: Preprocessing, views: str
) -> Iterable:
    """The loader for `evaluate_classifiers` with these `views`."""
    return build_test_loader(
        ClassificationDataset(
            images, build_views(views, config.evaluation.scales, preprocessing), len(preprocessing.std)
        ),
        1 if views == "multi_scale" else config.evaluation.batch_size,
        num_workers=config.data.num_workers,
        max_unreadable=config.data.max_unreadable,
    )


def with_mean_image(preprocessing: Preprocessing, loader: Iterable) -> Preprocessing:
    """`preprocessing` with the mean image of a loader of single views, over all ranks, as its mean."""
    size, channels = preprocessing.size, len(preprocessing.std)
    total, count = torch.zeros(channels, size, size, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for views, *_ in loader:
        total += torch.cat([stack for (stack,) in views]).double().sum(0) / 255
        count += len(views)
    return replace(preprocessing, mean=(distributed.total(total) / distributed.total(count)).tolist())
