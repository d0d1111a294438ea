"""Show where a detector errs: one HTML page of curves, tables and images, to be opened from disk.

    resnet-backbones report instances_val2017.json predictions.json --images val2017 [--against others.json]

The page has AP by class and size, precision and recall, confusion, errors by kind, calibration, the best score
threshold of each class, and the worst images. The numbers are also written as JSON; `predict --score-threshold` reads
the thresholds from it.
"""

from pathlib import Path

from ..errors import UserError, one_line_errors, printable
from . import command_parser
from .report_files import check_outputs

IOU_TYPES = ("bbox", "segm")


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("report", __doc__)
    parser.add_argument("ground_truth", help="COCO instances JSON")
    parser.add_argument("predictions", help="COCO results JSON")
    parser.add_argument("--images", type=Path, help="folder of the images; without it, outlines are drawn on gray")
    parser.add_argument("--against", help="COCO results JSON of the same images, to compare the predictions with")
    parser.add_argument("--iou-type", choices=IOU_TYPES, default="bbox")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page, by default report.html")
    parser.add_argument("--json", type=Path, help="the numbers, by default beside the page, such as report.json")
    args = parser.parse_args(argv)
    from ..data.annotations import report
    from ..data.cleaning import read_instances
    from ..data.json_file import read_json, without_garbage_collection
    from ..report.writing import write_detection_report

    numbers_path = args.json or args.output.parent / f"{args.output.stem}.json"
    with one_line_errors(), without_garbage_collection():
        inputs = [path for path in (args.ground_truth, args.predictions, args.against) if path]
        check_outputs({"--output": (args.output, ".html"), "--json": (numbers_path, ".json")}, inputs)
        if args.images is not None and not args.images.is_dir():
            fault = "is not a folder" if args.images.exists() else "does not exist"
            raise UserError(f"--images: {args.images} {fault}; give the folder of the images, or leave it out.")
        data = read_instances(args.ground_truth, args.images)
        predictions = read_json(args.predictions, "predictions file")
        other = read_json(args.against, "predictions file") if args.against else None
        report(data)
        numbers = write_detection_report(
            args.output,
            data,
            predictions,
            args.iou_type,
            args.predictions,
            (args.against, other) if args.against else None,
            pictures=args.images is not None,
            numbers_path=numbers_path,
            title=Path(args.predictions).name,
        )
        metrics = {name: value for name, value in numbers["overall"].items() if name.startswith("A")}
        print("  ".join(f"{name} -" if value is None else f"{name} {value:.2f}" for name, value in metrics.items()))
        print(f"the report is in {printable(str(args.output.absolute()))}")
