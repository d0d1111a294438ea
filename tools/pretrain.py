#!/usr/bin/env python3
"""Train a classifier, whose backbone detectors then load, or with --eval-only score some, from a config.

tools/pretrain.py --config imagenet_resnet50.yaml [--resume] [key=value …]
tools/pretrain.py --config imagenet_resnet50.yaml --eval-only weights=model.safetensors evaluation.views=ten_crop
tools/pretrain.py --config imagenet_resnet50.yaml --eval-only weights=a.safetensors ensemble=[b.safetensors]
"""

import argparse
import logging
import math
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from resnet_backbones import distributed
from resnet_backbones.cli import pretraining
from resnet_backbones.cli.run import run_tool, start
from resnet_backbones.config import PretrainConfig, load_config
from resnet_backbones.data.imagenet import load_images
from resnet_backbones.evaluation.report import metrics_table, write_json
from resnet_backbones.evaluation.testing import ClassificationTest
from resnet_backbones.training.curves import draw_comparison, draw_curves
from resnet_backbones.training.loop import fit, set_seed
from resnet_backbones.training.solver import in_iterations
from resnet_backbones.weights import save_safetensors

logger = logging.getLogger("resnet_backbones.pretrain")


def train(config: DictConfig, resume: bool) -> None:
    """Train, score, and leave `model.safetensors`, `metrics.json` and `curves.png` in `output_dir`."""
    device, output_dir, config = start(config, eval_only=False)
    data, views = config.data, config.evaluation.views
    images = load_images(data.root, data.train, data.classes)
    val_images = load_images(data.root, data.val, images.classes)
    solver = in_iterations(config.solver, len(images))
    logger.info("%d images, %d classes, %d steps, on %s", len(images), len(images.classes), solver.max_iter, device)

    model = pretraining.build_for_training(config, images.classes)
    preprocessing = pretraining.resolve_preprocessing(config, model.backbone.preprocessing)
    if config.preprocessing.per_pixel_mean:
        centers = pretraining.view_loader(config, images, preprocessing, "center")
        preprocessing = pretraining.with_mean_image(preprocessing, centers)
    pretraining.set_preprocessing(model, preprocessing, config.augmentation)
    model.to(device)
    loader = pretraining.train_loader(config, images, preprocessing)
    val_loader = pretraining.view_loader(config, val_images, preprocessing, views)
    test = ClassificationTest([model], val_loader, config.evaluation.precise_bn, loader)

    epoch = math.ceil(len(images) / solver.batch_size)
    period = epoch if config.evaluation.period is None else config.evaluation.period
    metadata = pretraining.describe(model, images.classes, config)
    set_seed(config.seed + distributed.rank(), config.solver.deterministic)
    metrics = fit(model, loader, solver, output_dir, test, period, "top1", metadata, resume)
    if distributed.is_main():
        save_safetensors(output_dir / "model.safetensors", model.state_dict(), metadata | {"metrics": metrics})
        draw_curves(output_dir, output_dir / "curves.png")
        write_json(output_dir / "metrics.json", metrics)
        logger.info("figures in percent:\n%s", metrics_table(metrics))
        logger.info("model.safetensors, figures and curves.png are in %s", output_dir.absolute())


def score(config: DictConfig) -> None:
    """Score `weights`, together with `ensemble`, and leave `metrics.json` in `output_dir`."""
    device, output_dir, config = start(config, eval_only=True)
    models = [model.to(device) for model in pretraining.load_ensemble(config)]
    images = pretraining.load_scored_images(config, models[0])
    loader = pretraining.view_loader(config, images, models[0].preprocessing, config.evaluation.views)
    metrics = ClassificationTest(models, loader)()
    if distributed.is_main():
        write_json(output_dir / "metrics.json", metrics)
        logger.info("figures in percent:\n%s", metrics_table(metrics))


def compare(config: DictConfig, resume: bool) -> None:
    """Train each backbone of `compare` in a folder of its own and draw their errors into `comparison.png`."""
    pretraining.check_names(config, config.compare)
    runs = {name: Path(config.output_dir) / name for name in config.compare}
    for name, folder in runs.items():
        train(OmegaConf.merge(config, {"backbone": {"name": name}, "output_dir": str(folder)}), resume)
    if distributed.is_main():
        draw_comparison(runs, Path(config.output_dir) / "comparison.png")


def run(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.overrides, PretrainConfig)
    if args.eval_only:
        score(config)
    elif config.compare:
        compare(config, args.resume)
    else:
        train(config, args.resume)


def main(argv: list[str] | None = None) -> None:
    run_tool(__doc__, run, argv)


if __name__ == "__main__":
    main()
