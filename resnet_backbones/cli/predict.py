"""Predict with a trained detector or classifier; its checkpoint is all that is needed.

    resnet-backbones predict best.pt photos/ "more/**/*.jpg" https://example.com/a.jpg clip.mp4 --output out
    find . -name "*.png" | resnet-backbones predict best.pt - --output out

Inputs are images, folders of images, globs, URLs, videos, or - for a list of paths on standard input. Writes to the
output folder:

    predictions.json   the results in COCO's format
    images.json        their images and categories, as in a COCO file; ids count from 1, or are those of --ground-truth
    images/, videos/   the inputs with the results drawn on them
    predictions.csv    with --csv

Images that cannot be read are reported and counted. To resume an interrupted run, repeat the command.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from ..config import load_config
from ..errors import UserError, errors_about, one_line_errors, printable
from . import command_parser

if TYPE_CHECKING:
    from ..inference.sources import Source

JOURNAL = "predictions.jsonl"
SHOWN = 0.5  # minimum score of drawn results, if no threshold is given
WAYS = ("batch_size", "csv", "device", "output")  # arguments that do not affect the results


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with one_line_errors():
        if not args.output:
            raise UserError("--output is empty; give the folder for the results.")
        config = None if args.config is None else load_config(args.config)
        from PIL import Image

        from ..inference.detecting import score_thresholds
        from ..inference.files import keeping_results, predict_files
        from ..inference.journal import Journal
        from ..inference.outputs import write_csv, write_json_files
        from ..inference.pictures import drawing
        from ..inference.predictor import Predictor
        from ..inference.sources import find_sources
        from ..paths import output_folder
        from ..training.logger import set_up_logging

        set_up_logging()
        Image.MAX_IMAGE_PIXELS = None  # `read_image` has a limit of its own
        sources = find_sources(args.inputs, Path(os.path.expanduser(args.output)))
        threshold = read_threshold(args.score_threshold)
        predictor = Predictor(
            args.weights,
            config=config,
            classes=None if args.classes is None else [name.strip() for name in args.classes.split(",")],
            device=args.device,
            amp=args.amp,
            tile=args.tile,
            overlap=args.overlap,
            batch_size=args.batch_size,
        )
        if threshold is not None:
            with errors_about(f"--score-threshold {args.score_threshold}"):
                predictor.thresholds = score_thresholds(threshold, predictor.classes)
        sources, categories = identify(sources, predictor.classes, args.ground_truth)
        folder = output_folder(args.output)
        check_earlier(folder)
        with keeping_results(folder):
            journal = Journal(folder / JOURNAL, as_command(args, config, sources, categories, threshold))
            if len(journal):
                print(printable(f"{len(journal)} images are already in {journal.path}"), flush=True)
            draw = drawing(categories, predictor.thresholds.clip(SHOWN if threshold is None else 0))
            faults = predict_files(predictor, sources, folder, journal, [c["id"] for c in categories], draw)
            if not len(journal):
                journal.remove()
                raise UserError(f"None of the {len(sources)} inputs can be read; the log says why.")
            count = write_json_files(journal, folder, categories)
            if args.csv:
                write_csv(journal, folder, categories)
        unread = f"; {len(faults)} could not be read, or only in part" if faults else ""
        print(printable(f"{len(journal)} images, {count} results in {folder / 'predictions.json'}{unread}"))
        journal.remove()


def parser() -> argparse.ArgumentParser:
    parser = command_parser("predict", __doc__)
    parser.add_argument("weights", help="checkpoint of train, such as best.pt, or model.safetensors of pretrain")
    parser.add_argument("inputs", nargs="+", metavar="input", help="image, folder, glob, URL, video, or -")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--config", help="the YAML of the detector, for a checkpoint that does not say how it is built")
    parser.add_argument("--classes", metavar="A,B,…", help="class names in label order, for a checkpoint without them")
    parser.add_argument("--ground-truth", metavar="JSON", help="COCO file whose image and category ids are used")
    parser.add_argument(
        "--score-threshold",
        metavar="T",
        help='a number, or a JSON file {"thresholds": {class: number}}; default: 0.05, in pictures 0.5',
    )
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="cut larger images into tiles of this size")
    parser.add_argument("--overlap", type=float, default=0.2, help="of neighboring tiles, as a fraction of their size")
    parser.add_argument("--batch-size", type=int, default=4, help="images or tiles per batch, all of one size")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_argument("--amp", choices=("none", "bf16", "fp16"), default="none", help="mixed precision")
    parser.add_argument("--csv", action="store_true", help="also write predictions.csv")
    return parser


def read_threshold(given: str | None) -> float | dict | None:
    """The number, or the thresholds of each class in a JSON file."""
    if given is None:
        return None
    try:
        return float(given)
    except ValueError:
        pass
    from ..data.json_file import read_json

    content = read_json(given, "file of thresholds")
    if not isinstance(content, dict) or not isinstance(content.get("thresholds"), dict):
        raise UserError(f'{given} has no "thresholds", a mapping of class names to numbers; see --score-threshold.')
    return content["thresholds"]


def identify(
    sources: "list[Source]", classes: list[str], ground_truth: str | None
) -> "tuple[list[Source], list[dict]]":
    """The sources with their image ids, and each class's category; without ground truth, category ids count from 1.

    Raises `UserError` if the ground truth has none of the images or lacks a class.
    """
    if ground_truth is None:
        return sources, [{"id": k, "name": name} for k, name in enumerate(classes, start=1)]
    from ..data.cleaning import read_instances
    from ..inference.sources import with_ground_truth

    data = read_instances(ground_truth)
    with errors_about(ground_truth):
        ids = {category["name"]: category["id"] for category in data.categories}
        lacking = [name for name in classes if name not in ids]
        if lacking:
            raise UserError(
                f"it has no category {lacking[0]!r}, which the checkpoint predicts; its categories: {', '.join(ids)}."
            )
        found, others = with_ground_truth(sources, data)
    if others:
        print(f"{others} inputs are not images of {ground_truth} and are left out", file=sys.stderr)
    return found, [{"id": ids[name], "name": name} for name in classes]


def check_earlier(folder: Path) -> None:
    """Raise `UserError` if `folder` has files from elsewhere that a prediction would replace."""
    from ..inference.journal import read_command
    from ..inference.outputs import is_index

    if read_command(folder / JOURNAL) is None and not is_index(folder / "images.json"):
        for name in ("predictions.json", "predictions.csv", "images.json", "images", "videos"):
            if (folder / name).exists():
                raise UserError(f"{folder / name} is not from an earlier prediction; choose another --output.")


def as_command(
    args: argparse.Namespace,
    config: DictConfig | None,
    sources: "list[Source]",
    categories: list[dict],
    threshold: float | dict | None,
) -> dict:
    """What the results depend on, to tell whether a run can resume an earlier one."""
    command = {key: value for key, value in vars(args).items() if key not in WAYS}
    weights = os.path.expanduser(args.weights)
    modified = os.stat(weights).st_mtime_ns if os.path.isfile(weights) else None
    command |= {"score_threshold": threshold, "weights_modified": modified}
    files = [(s.path if "://" in s.path else os.path.realpath(s.path), *s[1:]) for s in sources]
    command["inputs"] = f"{' '.join(args.inputs)[:200]} ({len(files)} files, {fingerprint(files)})"
    if config is not None:
        command["config"] = f"{args.config} ({fingerprint(OmegaConf.to_container(config))})"
    if args.ground_truth is not None:
        command["ground_truth"] = f"{args.ground_truth} ({fingerprint(categories)})"
    return command


def fingerprint(content: object) -> str:
    return f"SHA-256 {hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"
