"""Check the data of a detector's config before training on it.

    resnet-backbones check-data bccd_faster_rcnn_R18.yaml [--output report.json] [--report report.html] [key=value …]

Reads every annotation and decodes every image of data.train and data.test. Prints, and with --output writes as JSON,
the counts of images, objects and classes, sizes, repairs made to the annotations, boxes without area or outside their
image, and images that have no objects or are missing, unreadable or nearly identical. Exits with 1 if a training run
would be wasted: no object to train on, classes that only the test data has, different classes in two sets, missing
images, more unreadable ones than data.max_unreadable, or more than 1 % of a test set's images, and more than one, also
in the training data.
"""

import sys
from pathlib import Path

from ..config import image_channels, load_config
from ..errors import one_line_errors
from . import command_parser
from .report_files import check_outputs

SHOWN = 5  # sizes of images
FINDINGS = {
    "boxes_without_area": "boxes without area",
    "boxes_outside_the_image": "boxes outside the image",
    "images_without_objects": "images without objects",
    "missing_images": "missing images",
    "unreadable_images": "unreadable images",
    "near_identical_images": "nearly identical images",
}


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("check-data", __doc__)
    parser.add_argument("config", help="a YAML file, or the name of a shipped one")
    parser.add_argument("--output", type=Path, help="also write the findings to this JSON file")
    parser.add_argument("--report", type=Path, help="also write a page of images with their objects to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in data.train=[own]")
    args = parser.parse_intermixed_args(argv)
    with one_line_errors():
        config = load_config(args.config, args.overrides)
        from ..data.checking import check
        from ..data.datasets import find_dataset, read_annotations
        from ..evaluation.report import write_json

        names = [*config.data.train, *config.data.test]
        places = [find_dataset(name, config.datasets) for name in names]
        inputs = [place.annotations or place.root for place in places]
        check_outputs({"--output": (args.output, ".json"), "--report": (args.report, ".html")}, inputs)
        sets = {name: read_annotations(name, config.datasets) for name in names}
        report = check(
            [sets[name] for name in config.data.train],
            [sets[name] for name in config.data.test],
            masks=config.detector.name == "mask_rcnn",
            channels=image_channels(config),
            max_unreadable=config.data.max_unreadable,
            threads=config.data.num_workers,
        )
        text = "\n".join(lines(report))
        print(text)  # before writing the files, which may fail
        if args.output:
            write_json(args.output, report)
        if args.report:
            from ..report.writing import write_data_report

            write_data_report(args.report, list(sets.values()), text, image_channels(config))
    sys.exit(1 if report["faults"] else 0)


def lines(report: dict) -> list[str]:
    """The report as text."""
    found = []
    for name, row in report["sets"].items():
        found += [f"{name}:", *(f"  {text}" for text in set_lines(row))]
    for pair in report["shared_images"]:
        if pair["count"]:
            found.append(f"{pair['of']} and {pair['in']}: nearly identical images: {pair['count']}{first(pair)}")
    if not report["faults"]:
        return [*found, "nothing found that would waste a training run"]
    return [*found, "this would waste a training run:", *(f"  {fault}" for fault in report["faults"])]


def set_lines(row: dict) -> list[str]:
    """The report of one set as text, without empty findings."""
    classes = [f"{name} {n['objects']} in {n['images']} images" for name, n in row["classes"].items()]
    sizes = [f"{w} x {h} ({n['images']})" for n in row["image_sizes"][:SHOWN] for w, h in [n["size"]]]
    more = ", …" if len(row["image_sizes"]) > SHOWN else ""
    counts = f"{row['images']} images, {row['objects']} objects, of which {row['objects_to_train_on']} to train on"
    found = [
        f"{row['format']}: {counts}, {row['crowds']} crowds, {row['with_segmentation']} with a mask",
        f"objects: {', '.join(classes)}",
        f"areas: {', '.join(f'{count} {size}' for size, count in row['box_sizes'].items())}",
        f"image sizes: {', '.join(sizes)}{more}",
    ]
    found += [f"{n['count']} x {n['what']} (first {n['first']})" for n in row["repairs"]]
    for key, what in FINDINGS.items():
        if row[key]["count"]:
            found.append(f"{what}: {row[key]['count']}{first(row[key])}")
    return found


def first(finding: dict) -> str:
    """An example, in parentheses."""
    example = finding["examples"][0]
    return f" (first {example if isinstance(example, str) else ' and '.join(example)})"
