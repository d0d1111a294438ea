"""The study `shortcuts` of `analyze`: networks side by side by parameters, FLOPs, error and time."""

import argparse
import json
import time
from pathlib import Path

from omegaconf import OmegaConf

from ..analysis.cost import analyze
from ..analysis.figures import draw_costs
from ..backbones import valid_options
from ..config import PretrainConfig, load_config
from ..errors import UserError
from ..evaluation.report import write_json
from ..paths import output_folder
from .pretraining import check, compare, comparison_table
from .subjects import inference_copy, subjects

CONFIG = "cifar10_shortcuts.yaml"
KINDS = ("A", "A_centered", "B", "C", "none")


def shortcuts(args: argparse.Namespace, options: dict) -> None:
    """Compare the classifiers of --weights as they are, or train those of --name with each shortcut.

    Leaves shortcuts.json and shortcuts.png in the output folder.
    """
    if not args.weights and not args.name:
        raise UserError("Give --weights FILE, or --name NAME to train it with each shortcut.")
    folder = output_folder(args.output)
    rows = measured(args, options) if args.weights else trained(args, options, folder)
    draw_costs(rows, folder / "shortcuts.png")
    write_json(folder / "shortcuts.json", {"settings": settings_of(args, options), "networks": rows})
    print(f"{folder / 'shortcuts.json'} and shortcuts.png beside it")


def settings_of(args: argparse.Namespace, options: dict) -> dict:
    keys = ("weights", "name", "data", "split", "images", "batch_size", "seed")
    return {key: getattr(args, key) for key in keys} | {"options": options}


def measured(args: argparse.Namespace, options: dict) -> list[dict]:
    """A row for each of --weights; `seconds` are those of scoring all images, loading included."""
    rows = []
    for subject in subjects(args, options):
        if subject.metric != "error":
            raise UserError(f"{subject.source} is a detector; shortcuts compares classifiers.")
        images, _ = next(iter(subject.batches(1, False)))
        model = inference_copy(subject)
        model(images)  # the first call of a network takes longer
        start = time.perf_counter()
        error = subject.score(model)["error"]
        seconds = time.perf_counter() - start
        size, channels = tuple(images.shape[-2:]), images.shape[1]
        total = analyze(subject.model, size, channels)["total"]
        costs = {"parameters": total["parameters"], "flops": total["flops"], "seconds": seconds}
        rows.append({"name": subject.label, **costs, "error": error})
    print(comparison_table(rows))
    return rows


def trained(args: argparse.Namespace, options: dict, folder: Path) -> list[dict]:
    """A row for each of --name with each shortcut, trained on --data by the schedule of `CONFIG`."""
    for key in ("images", "split", "device"):
        if getattr(args, key) is not None:
            raise UserError(f"--{key} is of no use to shortcuts --name, which trains; leave it out.")
    if "shortcut" in options:
        raise UserError("shortcuts --name trains with each shortcut; leave shortcut= out.")
    for name in args.name:
        if "shortcut" not in valid_options(name):
            raise UserError(f"{name} has no option shortcut; choose a residual network.")
    pairs = "".join(f" {key}={json.dumps(value, separators=(',', ':'))}" for key, value in options.items())
    entries = [f"{name} shortcut={kind}{pairs}" for name in args.name for kind in KINDS]
    given = {"data": {"root": args.data, "num_workers": args.num_workers}, "output_dir": str(folder)}
    given |= {"seed": args.seed, "compare": entries}
    config = OmegaConf.merge(load_config(CONFIG, [], PretrainConfig), given)
    if args.batch_size:
        config.solver.batch_size = args.batch_size
    check(config, eval_only=False)
    begin(folder / "shortcuts.json", settings_of(args, options))
    return compare(config, resume=True)


def begin(path: Path, settings: dict) -> None:
    """Raise `UserError` where the trainings in the folder of `path` are of other `settings`; else note these."""
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            known = json.loads(path.read_text())["settings"]
        except (ValueError, TypeError, KeyError):
            known = None
        if known != settings:
            raise UserError(f"{path} is of another command, or damaged; choose another --output.")
    write_json(path, {"settings": settings, "networks": []})
