"""The study `shortcuts` of `analyze`: networks side by side by parameters, FLOPs, error and time."""

import argparse
import time
from pathlib import Path

from omegaconf import OmegaConf

from ..analysis.cost import analyze
from ..analysis.figures import draw_comparison
from ..backbones import valid_options
from ..config import PretrainConfig, load_config
from ..errors import UserError
from ..evaluation.report import write_json
from ..paths import output_folder
from ..preprocessing import input_channels
from .pretraining import check, compare, comparison_table
from .subjects import Subject, inference_copy, subjects

CONFIG = "cifar10_shortcuts.yaml"
KINDS = ("A", "A_centered", "B", "C", "none")


def shortcuts(args: argparse.Namespace, options: dict) -> None:
    """Compare the classifiers of --weights as they are, or train those of --name with each shortcut.

    Leaves shortcuts.json and shortcuts.png in the output folder.
    """
    folder = output_folder(args.output)
    rows = weighed(args, options) if args.weights else trained(args, options, folder)
    write_json(folder / "shortcuts.json", {"networks": rows})
    draw_comparison(rows, folder / "shortcuts.png")
    print(f"{comparison_table(rows)}\n{folder / 'shortcuts.json'} and shortcuts.png beside it")


def weighed(args: argparse.Namespace, options: dict) -> list[dict]:
    """A row for each of --weights; `seconds` are those of scoring all images, loading included."""
    rows = []
    for subject in subjects(args, options):
        if subject.metric != "error":
            raise UserError(f"{subject.source} is a detector; shortcuts compares classifiers.")
        start = time.perf_counter()
        error = subject.score(inference_copy(subject))["error"]
        seconds = time.perf_counter() - start
        rows.append({"name": subject.label, **costs(subject), "seconds": seconds, "error": error})
    return rows


def costs(subject: Subject) -> dict:
    images, _ = next(iter(subject.batches(1, False)))
    total = analyze(subject.model.cpu(), tuple(images.shape[-2:]), input_channels(subject.model.backbone))["total"]
    return {"parameters": total["parameters"], "flops": total["flops"]}


def trained(args: argparse.Namespace, options: dict, folder: Path) -> list[dict]:
    """A row for each of --name with each shortcut, trained on --data by the schedule of `CONFIG`."""
    for name in args.name:
        if "shortcut" not in valid_options(name):
            raise UserError(f"{name} has no option shortcut; choose a residual network.")
    pairs = "".join(f" {key}={value}" for key, value in options.items())
    entries = [f"{name} shortcut={kind}{pairs}" for name in args.name for kind in KINDS]
    given = {"data": {"root": args.data, "num_workers": args.num_workers}, "output_dir": str(folder)}
    given |= {"seed": args.seed} | ({"compare": entries} if entries else {})
    config = OmegaConf.merge(load_config(CONFIG, [], PretrainConfig), given)
    if args.batch_size:
        config.solver.batch_size = args.batch_size
    check(config, eval_only=False)
    return compare(config, resume=True)
