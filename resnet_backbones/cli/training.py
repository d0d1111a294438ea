"""The job of `train`: data, detector, training and evaluation, from a config."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import nn

from .. import distributed
from ..backbones import build_backbone
from ..config import image_channels
from ..data.annotations import Annotations
from ..data.dataset import DetectionDataset, check_same_classes
from ..data.datasets import find_dataset, load_annotations
from ..data.loader import build_test_loader, build_train_loader
from ..data.unreadable import check_headers
from ..detectors import backbone_options, build_detector, compile_detector, describe, global_batch
from ..detectors.test_time import MultiView
from ..errors import UserError, errors_about
from ..evaluation.detection import evaluate_sets, save_results
from ..evaluation.report import metrics_table, write_json
from ..models.fuse import fold_norms
from ..models.layers import has_live_batch_norm
from ..training.loop import fit, memory_format, set_seed
from .reporting import detection_reports
from .run import check_weights, for_inference, open_output, start, trial

logger = logging.getLogger(__name__)


def check(config: DictConfig, eval_only: bool) -> None:
    """Raise `UserError` if the detector cannot be built or weights or data are missing, without reading them."""
    bare = OmegaConf.merge(config, {"weights": None, "backbone": {"weights": None}})
    with trial():
        with errors_about("backbone"):
            build_backbone(**backbone_options(bare))
        build_detector(bare, num_classes=1)
    check_weights(config)
    for key in ["data.test"] if eval_only else ["data.train", "data.test"]:
        for name in OmegaConf.select(config, key):
            with errors_about(key):
                find_dataset(name, config.datasets)


def train(given: DictConfig, resume: bool) -> None:
    """Train and evaluate a detector; writes checkpoints, metrics, predictions, samples and a report to `output_dir`."""
    device, config = start(given)
    solver, output_dir = config.solver, Path(config.output_dir).expanduser()
    test_sets, train_sets = load_sets(config, config.data.test), load_sets(config, config.data.train)
    check_same_classes(test_sets[0], train_sets[0])
    if not test_sets[0].is_labeled:
        raise UserError(f"data.test: {test_sets[0].name} has no annotations, which metrics need; give another set.")
    for data in test_sets:
        check_headers(data, config.data.max_unreadable)
    model = build_detector(config, len(test_sets[0].classes), new_predictors=True).to(device)
    if config.data.aspect_ratio_grouping is None:
        config.data.aspect_ratio_grouping = not has_live_batch_norm(model)
    loader = train_loader(train_sets, config)
    fold_norms(model)
    global_batch(model)
    model.to(memory_format=memory_format(model, solver))
    if solver.compile != "none":
        compile_detector(model, solver.compile)

    score = scorer(test_sets, config)
    predictions: list[list[dict]] = []

    def evaluate() -> dict[str, float]:
        metrics, predictions[:] = score(for_inference(model, solver))
        return metrics

    set_seed(config.seed + distributed.rank(), solver.deterministic)
    period, metadata = config.evaluation.period, describe(model, config, test_sets[0].classes)
    options = {"resume": resume, "on_start": partial(open_output, given), "patience": config.evaluation.patience}
    metrics = fit(model, loader, solver, output_dir, evaluate, period, "bbox/AP", metadata, **options)
    save(output_dir, test_sets, metrics, predictions, config)


def evaluate(given: DictConfig) -> None:
    """Evaluate the detector `weights`; writes metrics, predictions, samples and a report to `output_dir`."""
    device, config = start(given)
    test_sets = load_sets(config, config.data.test)
    model = for_inference(build_detector(config, len(test_sets[0].classes)).to(device), config.solver)
    if config.solver.compile != "none":
        compile_detector(model, config.solver.compile)
    score, output_dir = scorer(test_sets, config), open_output(given)
    save(output_dir, test_sets, *score(model), config)


def load_sets(config: DictConfig, names: list[str]) -> list[Annotations]:
    """The datasets `names`. Raises `UserError` if their classes differ."""
    sets = [load_annotations(name, config.datasets) for name in names]
    for other in sets:
        check_same_classes(sets[0], other)
    return sets


def check_detector_classes(data: Annotations, classes: list[str]) -> None:
    """Raise `UserError` unless `data`, given as --data, has the classes of a detector."""
    if data.classes != classes:
        raise UserError(
            f"{data.name} of --data has the classes {', '.join(data.classes)}, but the detector has "
            f"{', '.join(classes)}."
        )


def train_loader(sets: list[Annotations], config: DictConfig) -> Callable:
    """`build_train_loader(start=…)` of `sets`, for `fit`."""
    data, masks = config.data, config.detector.name == "mask_rcnn"
    same = ("flip", "photometric", "scale_jitter", "copy_paste", "repeat_threshold", "keep_empty")
    options = {key: data[key] for key in same}
    dataset = DetectionDataset(sets, train=True, masks=masks, channels=image_channels(config), **options)
    logger.info("images: %d, classes: %d", len(dataset), len(dataset.classes))
    return partial(
        build_train_loader,
        dataset,
        config.solver.batch_size,
        num_workers=data.num_workers,
        seed=config.seed,
        accumulate=config.solver.accumulate,
        aspect_ratio_grouping=data.aspect_ratio_grouping,
        max_unreadable=data.max_unreadable,
    )


def scorer(sets: list[Annotations], config: DictConfig) -> Callable[[nn.Module], tuple[dict, list]]:
    """A function from a detector to its metrics on `sets`, in percent, and its predictions."""
    options = {"num_workers": config.data.num_workers, "max_unreadable": config.data.max_unreadable}
    channels = image_channels(config)
    loaders = [build_test_loader(DetectionDataset([data], train=False, channels=channels), **options) for data in sets]
    masks, backend = config.detector.name == "mask_rcnn", config.evaluation.backend

    def score(model: nn.Module) -> tuple[dict, list]:
        return evaluate_sets(multi_view(model, config), sets, loaders, masks, backend)

    return score


def multi_view(model: nn.Module, config: DictConfig) -> nn.Module:
    """The detector with the test-time augmentation that the config asks for."""
    d, sizes, flip = config.detector, config.evaluation.tta_sizes, config.evaluation.tta_flip
    if sizes is None and not flip:
        return model
    return MultiView(model, sizes or d.min_size[-1:], flip, d.box_nms_thresh, d.box_detections_per_img)


def save(
    output_dir: Path, sets: list[Annotations], metrics: dict, predictions: list[list[dict]], config: DictConfig
) -> None:
    """Write and log the results, on the main rank."""
    if distributed.is_main():
        write_json(output_dir / "metrics.json", metrics)
        samples, channels = config.evaluation, image_channels(config)
        save_results(output_dir, sets, predictions, samples.samples, samples.sample_score, channels)
        detection_reports(output_dir, sets, predictions, config)
        logger.info("metrics in percent:\n%s", metrics_table(metrics))
        logger.info("report.html, metrics, predictions.json and samples/*.png are in %s", output_dir.absolute())
