#!/usr/bin/env python3
"""Score a results file in COCO's format, without any model.

tools/evaluate.py --ground-truth instances_val2017.json --predictions predictions.json --iou-type bbox

Prints pycocotools' twelve lines, per-class AP, and as its last line all figures unrounded, in percent, as JSON.
"""

import argparse
import json
from pathlib import Path

from resnet_backbones.data.coco import read_json
from resnet_backbones.errors import one_line_errors
from resnet_backbones.evaluation.backends import BACKENDS
from resnet_backbones.evaluation.coco import IOU_TYPES, evaluate_coco
from resnet_backbones.evaluation.report import metrics_table, write_json


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground-truth", required=True, help="COCO instances JSON")
    parser.add_argument("--predictions", required=True, help="COCO results JSON")
    parser.add_argument("--iou-type", choices=IOU_TYPES, default="bbox")
    parser.add_argument(
        "--backend", choices=BACKENDS, default=BACKENDS[0], help="pycocotools is slower; figures are the same"
    )
    parser.add_argument("--output", type=Path, help="write that JSON to this file, too")
    args = parser.parse_args(argv)
    with one_line_errors():
        ground_truth = read_json(args.ground_truth)
        metrics, summary = evaluate_coco(ground_truth, read_json(args.predictions), args.iou_type, args.backend)
        print(summary + metrics_table(metrics))
        print(json.dumps(metrics))
        if args.output:
            write_json(args.output, metrics)


if __name__ == "__main__":
    main()
