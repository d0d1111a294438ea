#!/usr/bin/env python3
"""Train a detector, or with --eval-only score one, from a config.

    tools/train_net.py --config coco_faster_rcnn_R101.yaml [--resume] [key=value …]
    tools/train_net.py --config coco_faster_rcnn_R101.yaml --eval-only weights=output/best.pt

With --num-gpus N, or under torchrun, the same command uses N processes, one a GPU.
"""

import logging
from functools import partial

from omegaconf import DictConfig

from resnet_backbones.cli.run import run_tool, start
from resnet_backbones.config import load_config
from resnet_backbones.evaluation.report import metrics_table, write_json

logger = logging.getLogger("resnet_backbones.train_net")


def run(config: DictConfig, eval_only: bool, resume: bool) -> None:
    """The main job: data, model, training, figures, and what is left in `output_dir`."""
    # Here, because torch and torchvision take seconds that --help and a wrong config need not wait.
    from resnet_backbones import distributed
    from resnet_backbones.data import DetectionDataset, build_train_loader, check_same_classes, load_annotations
    from resnet_backbones.detectors import build_detector, compile_detector, describe
    from resnet_backbones.evaluation.testing import DetectionTest
    from resnet_backbones.training.loop import fit, set_seed

    device, output_dir, config = start(config, eval_only)
    own, masks = config.datasets, config.detector.name == "mask_rcnn"
    test_sets = [load_annotations(name, own) for name in config.data.test]
    train_sets = [] if eval_only else [load_annotations(name, own) for name in config.data.train]
    for other in [*train_sets, *test_sets]:
        check_same_classes(test_sets[0], other)
    model = build_detector(config, len(test_sets[0].classes)).to(device)
    if config.solver.compile != "none":
        compile_detector(model, config.solver.compile)
    evaluation, unreadable = config.evaluation, config.data.max_unreadable
    test = DetectionTest(model, test_sets, masks, config.data.num_workers, evaluation.backend, unreadable)

    if eval_only:
        metrics = test()
    else:
        dataset = DetectionDataset(
            train_sets, train=True, masks=masks, flip=config.data.flip, keep_empty=config.data.keep_empty
        )
        logger.info("%d images, %d classes, on %s", len(dataset), len(dataset.classes), device)
        loader = partial(
            build_train_loader,
            dataset,
            config.solver.batch_size,
            num_workers=config.data.num_workers,
            seed=config.seed,
            accumulate=config.solver.accumulate,
            aspect_ratio_grouping=config.data.aspect_ratio_grouping,
            max_unreadable=unreadable,
        )
        set_seed(config.seed + distributed.rank(), config.solver.deterministic)
        metadata, period = describe(model, test_sets[0].classes), evaluation.period
        metrics = fit(model, loader, config.solver, output_dir, test, period, "bbox/AP", metadata, resume)
    if distributed.is_main():
        write_json(output_dir / "metrics.json", metrics)
        test.save(output_dir, evaluation.samples, evaluation.sample_score)
        logger.info("figures in percent:\n%s", metrics_table(metrics))
        logger.info("checkpoint, figures, predictions.json and samples/*.png are in %s", output_dir.absolute())


def main(argv: list[str] | None = None) -> None:
    run_tool(__doc__, lambda args: run(load_config(args.config, args.overrides), args.eval_only, args.resume), argv)


if __name__ == "__main__":
    main()
