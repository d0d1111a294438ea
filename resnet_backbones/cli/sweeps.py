"""The study `shortcuts` of `analyze`: networks compared by parameters, FLOPs, error and time."""

import argparse
import json
import time

from omegaconf import OmegaConf

from ..analysis.cost import analyze
from ..analysis.figures import draw_costs
from ..backbones import valid_options
from ..config import PretrainConfig, load_config
from ..errors import UserError
from ..paths import output_folder
from .findings import Findings
from .pretraining import check, compare, comparison_table
from .subjects import Subject, inference_copy, subjects

CONFIG = "cifar10_shortcuts.yaml"
KINDS = ("A", "A_centered", "B", "C", "none")


def shortcuts(args: argparse.Namespace, options: dict) -> None:
    """Compare the classifiers of --weights, or train those of --name with each shortcut.

    Writes shortcuts.json and shortcuts.png to the output folder.
    """
    if not args.weights and not args.name:
        raise UserError("Give --weights FILE, or --name NAME to train it with each shortcut.")
    folder = output_folder(args.output)
    keys = ("weights", "name", "data", "split", "images", "batch_size", "seed")
    settings = {key: getattr(args, key) for key in keys} | {"options": options}
    findings = Findings(folder / "shortcuts.json", settings)
    rows = (measured if args.weights else trained)(args, options, findings)
    draw_costs(rows, folder / "shortcuts.png")
    print(f"{findings.path} and shortcuts.png beside it")


def measured(args: argparse.Namespace, options: dict, findings: Findings) -> list[dict]:
    """A row for each of --weights; `seconds` is the time to score all images, loading included."""
    rows = []
    for subject in subjects(args, options):
        if subject.metric != "error":
            raise UserError(f"{subject.source} is a detector; shortcuts compares classifiers.")
        if findings.known(subject) is None:
            findings.save(subject, costs_of(subject))
        rows.append(findings.networks[subject.label])
    print(comparison_table(rows))
    return rows


def costs_of(subject: Subject) -> dict:
    images, _ = next(iter(subject.batches(1, False)))
    model = inference_copy(subject)
    model(images)  # the first call of a network takes longer
    start = time.perf_counter()
    error = subject.score(model)["error"]
    seconds = time.perf_counter() - start
    total = analyze(subject.model, tuple(images.shape[-2:]), images.shape[1])["total"]
    costs = {"parameters": total["parameters"], "flops": total["flops"]}
    return {"name": subject.label, **costs, "seconds": seconds, "error": error}


def trained(args: argparse.Namespace, options: dict, findings: Findings) -> list[dict]:
    """A row for each of --name with each shortcut, trained on --data with the schedule of `CONFIG`."""
    for key in ("images", "split", "device"):
        if getattr(args, key) is not None:
            raise UserError(f"--{key} does not apply to shortcuts --name, which trains; leave it out.")
    if "shortcut" in options:
        raise UserError("shortcuts --name trains with each shortcut; leave shortcut= out.")
    for name in args.name:
        if "shortcut" not in valid_options(name):
            raise UserError(f"{name} has no option shortcut; choose a residual network.")
    pairs = "".join(f" {key}={json.dumps(value, separators=(',', ':'))}" for key, value in options.items())
    entries = [f"{name} shortcut={kind}{pairs}" for name in args.name for kind in KINDS]
    given = {"data": {"root": args.data, "num_workers": args.num_workers}, "output_dir": str(findings.path.parent)}
    given |= {"seed": args.seed, "compare": entries}
    config = OmegaConf.merge(load_config(CONFIG, [], PretrainConfig), given)
    if args.batch_size:
        config.solver.batch_size = args.batch_size
    check(config, eval_only=False)
    findings.write()  # so that no other study uses the folder
    rows = compare(config, resume=True)
    findings.networks = {row["name"]: row for row in rows}
    findings.write()
    return rows
