"""Score detections in COCO's results format, without a model.

resnet-backbones evaluate --ground-truth instances_val2017.json --predictions predictions.json --iou-type bbox

Prints pycocotools' twelve lines, per-class AP, and as its last line all metrics as JSON, unrounded and in percent.
"""

import json
from pathlib import Path

from ..errors import errors_about, one_line_errors
from . import command_parser

BACKENDS = ("hotcoco", "pycocotools")
IOU_TYPES = ("bbox", "segm")


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("--ground-truth", required=True, help="COCO instances JSON")
    parser.add_argument("--predictions", required=True, help="COCO results JSON")
    parser.add_argument("--iou-type", choices=IOU_TYPES, default="bbox")
    parser.add_argument("--images", type=Path, help="folder of the images, if the ground truth lacks their sizes")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="pycocotools: slower, same metrics")
    parser.add_argument("--output", type=Path, help="also write the metrics to this JSON file")
    args = parser.parse_args(argv)
    from ..data.annotations import report
    from ..data.cleaning import read_instances
    from ..data.json_file import read_json, without_garbage_collection
    from ..evaluation.coco import evaluate_coco
    from ..evaluation.report import metrics_table, write_json

    with one_line_errors(), without_garbage_collection():
        data = read_instances(args.ground_truth, args.images)
        predictions = read_json(args.predictions, "predictions file")
        report(data)
        with errors_about(args.predictions):
            metrics, summary = evaluate_coco(data, predictions, args.iou_type, args.backend)
        print(summary + metrics_table(metrics))
        print(json.dumps(metrics))
        if args.output:
            write_json(args.output, metrics)
