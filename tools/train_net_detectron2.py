#!/usr/bin/env python3
"""detectron2's own trainer and COCOEvaluator with our backbones in its registry.

    tools/train_net_detectron2.py --config-file configs/detectron2/bccd_faster_rcnn_preact_R18.yaml \\
        --datasets bccd_faster_rcnn_R18.yaml [--num-gpus 8] [--resume] [--eval-only] [KEY VALUE …]

The config and options are detectron2's; MODEL.BACKBONE.NAME may be any of our names, MODEL.BACKBONE.WEIGHTS any of our
weights. --datasets registers the data sets that a YAML of ours names, also in its `datasets:` section.
"""

import argparse
import json
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools import mask as rle

from resnet_backbones.config import load_config
from resnet_backbones.data import Annotations, load_annotations
from resnet_backbones.detectors.detectron2 import add_config
from resnet_backbones.errors import one_line_errors


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / dataset_name))


def register_datasets(name: str) -> None:
    """Register with detectron2 the data sets of a YAML of ours."""
    config = load_config(name)
    for dataset in dict.fromkeys([*config.data.train, *config.data.test]):
        if dataset not in DatasetCatalog:
            data = load_annotations(dataset, config.datasets)
            DatasetCatalog.register(dataset, lambda data=data: records(data))
            MetadataCatalog.get(dataset).set(thing_classes=data.classes)


def records(data: Annotations) -> list[dict]:
    """A data set of ours in detectron2's form, in which classes count from 0 and RLE is compressed."""
    class_of = {category["id"]: k for k, category in enumerate(data.categories)}

    def annotation(o: dict) -> dict:
        row = {"bbox": o["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": o["iscrowd"]}
        segmentation = o.get("segmentation")
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            segmentation = rle.frPyObjects(segmentation, *segmentation["size"])
        return (
            row | {"category_id": class_of[o["category_id"]]} | ({"segmentation": segmentation} if segmentation else {})
        )

    return [
        {key: image[key] for key in ("height", "width")}
        | {"file_name": str(data.image_root / image["file_name"]), "image_id": image["id"]}
        | {"annotations": [annotation(o) for o in data.objects(k) if min(o["bbox"][2:]) > 0]}
        for k, image in enumerate(map(data.image, range(len(data))))
    ]


def run(args: argparse.Namespace) -> None:
    if args.datasets is not None:
        register_datasets(args.datasets)
    cfg = get_cfg()
    add_config(cfg)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        results = getattr(trainer, "_last_eval_results", {})  # train() returns them only where some are expected
    if comm.is_main_process():
        Path(cfg.OUTPUT_DIR, "results.json").write_text(json.dumps(results, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--datasets", help="a YAML of ours, or the name of one in configs/")
    args = parser.parse_args(argv)
    with one_line_errors():
        launch(run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))


if __name__ == "__main__":
    main()
