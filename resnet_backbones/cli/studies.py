"""The studies of `analyze`: what the papers measure in a network, on networks of one's own."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..analysis.blocks import block_shapes, find_blocks
from ..analysis.figures import draw_gradients, draw_lesions, draw_responses
from ..analysis.gradients import gradient_highways, mean_rows, training_mode
from ..analysis.lesions import lesion, plan_lesions
from ..analysis.paths import path_gradient, path_lengths, path_table
from ..analysis.responses import layer_responses
from ..errors import UserError
from ..evaluation.report import write_json
from ..paths import output_folder
from .subjects import Subject, inference_copy, subjects
from .sweeps import shortcuts

SAMPLE = {"responses": 1000, "gradients": 512}  # images, where --images is not given


class Findings:
    """What a study has found so far, by the label of the network, in a JSON file that is written at every step.

    A study that is started again with the same `settings` goes on. Raises `UserError` for a file of other settings.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path, self.networks = path, {}
        settings = json.loads(json.dumps(settings))
        if path.exists():
            try:
                known = json.loads(path.read_text())
                before, self.networks = known["settings"], known["networks"]
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{path} is not of an earlier study, or damaged; choose another --output.") from None
            for key in sorted(before.keys() | settings.keys()):
                if before.get(key) != settings.get(key):
                    raise UserError(
                        f"{path} is of {key} {before.get(key)}, which is now {settings.get(key)}; choose another "
                        "--output, or remove the file."
                    )
        self.settings = settings

    def save(self, label: str, found: object) -> None:
        self.networks[label] = found
        write_json(self.path, {"settings": self.settings, "networks": self.networks})


def study(args: argparse.Namespace, options: dict) -> None:
    """Run `args.study`; leaves STUDY.json and STUDY.png in the output folder."""
    if args.study == "shortcuts":
        return shortcuts(args, options)
    folder = output_folder(args.output)
    args.images = args.images or SAMPLE.get(args.study)
    settings = {key: getattr(args, key) for key in ("data", "split", "images", "batch_size", "seed", "draws")}
    findings = Findings(folder / f"{args.study}.json", settings | {"options": options})
    run, draw = STUDIES[args.study]
    for subject in subjects(args, options, untrained=args.study == "gradients"):
        run(subject, findings, args)
        draw(findings, folder / f"{args.study}.png")
    print(f"{findings.path} and {args.study}.png beside it")


def responses(subject: Subject, findings: Findings, args: argparse.Namespace) -> None:
    if subject.label not in findings.networks:
        subject.model.eval()
        batches = bar(subject.batches(args.images, False), subject, "batch")
        findings.save(subject.label, layer_responses(subject.model, batches, lambda model, batch: model(batch[0])))
    layers = findings.networks[subject.label]
    print(f"{subject.label}: {len(layers)} layers, mean of their standard deviations {mean(layers.values()):.4f}")


def gradients(subject: Subject, findings: Findings, args: argparse.Namespace) -> None:
    if subject.label not in findings.networks:
        blocks = find_blocks(subject.model)
        training_mode(subject.model)
        batches = bar(subject.batches(args.images, True), subject, "batch")
        rows = [gradient_highways(blocks, loss_of(subject.model, batch)) for batch in batches]
        findings.save(subject.label, mean_rows(rows))
    first = findings.networks[subject.label][0]
    share = "" if first["share"] is None else f", of which by shortcuts alone {100 * first['share']:.1f} %"
    print(f"{subject.label}: norm at {first['block']} {first['norm']:.4g}{share}")


def lesions(subject: Subject, findings: Findings, args: argparse.Namespace) -> None:
    blocks = find_blocks(subject.model)
    subject.model.eval()
    batch = next(iter(subject.batches(1, False)))
    with torch.no_grad():
        shapes = block_shapes(blocks, lambda: subject.model(batch[0]))
    plan = list(plan_lesions(blocks, shapes, args.draws, args.seed))
    if not any(row["kind"] == "single" for row in plan):
        raise UserError(f"{subject.label}: no block can be removed, as all change the size and none has a shortcut.")
    found = findings.networks.get(subject.label, {"blocks": [block.name for block in blocks], "experiments": []})
    model = inference_copy(subject)
    copies = find_blocks(model)
    rest = plan[len(found["experiments"]) :]
    for experiment in bar(rest, subject, "lesion"):
        with lesion(model, copies, experiment):
            found["experiments"].append(experiment | subject.score(model))
        findings.save(subject.label, found)
    residual = [block for block in blocks if block.is_residual]
    if residual and "paths" not in found:
        found["paths"] = by_path_length(subject, args)
        findings.save(subject.label, found)
    print(lesion_table(subject, found))


def by_path_length(subject: Subject, args: argparse.Namespace) -> list[dict]:
    blocks = find_blocks(subject.model)
    count = sum(block.is_residual for block in blocks)
    training_mode(subject.model)
    loss = loss_of(subject.model, next(iter(subject.batches(None, True))))
    norms: dict[int, list[float]] = {}
    for length in bar(path_lengths(count), subject, "path length"):
        draws = 1 if length in (0, count) else max(1, args.draws)
        norms[length] = [path_gradient(blocks, length, loss, args.seed + draw) for draw in range(draws)]
    return path_table(count, norms)


def loss_of(model: nn.Module, batch: tuple) -> Callable[[], Tensor]:
    """The training loss of a batch, with the same random draws of a detector's samplers at every call."""

    def loss() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return sum(value for name, value in model(*batch).items() if name.startswith("loss"))

    return loss


def lesion_table(subject: Subject, found: dict) -> str:
    metric, rows = subject.metric, found["experiments"]
    lines = [f"{subject.label}: {metric} {rows[0][metric]:.2f}; without"]
    for row in rows:
        if row["kind"] == "single":
            size = "" if row["keeps_size"] else "  (its shortcut changes the size)"
            lines.append(f"  {row['blocks'][0]:<28}{row[metric]:>8.2f}{size}")
    return "\n".join(lines)


def bar(items: object, subject: Subject, unit: str) -> tqdm:
    return tqdm(items, desc=subject.name, unit=unit, disable=None, leave=False)


def mean(values: object) -> float:
    values = list(values)
    return sum(values) / len(values)


STUDIES = {
    "responses": (responses, lambda found, path: draw_responses(found.networks, path)),
    "gradients": (gradients, lambda found, path: draw_gradients(found.networks, path)),
    "lesions": (lesions, lambda found, path: draw_lesions(found.networks, metric_of(found), path)),
}


def metric_of(findings: Findings) -> str:
    """The metric of the networks in a lesion study. Raises `UserError` where classifiers and detectors are mixed."""
    metrics = {"bbox/AP" if "bbox/AP" in found["experiments"][0] else "error" for found in findings.networks.values()}
    if len(metrics) > 1:
        raise UserError(f"{findings.path} has classifiers and detectors; choose another --output for one of them.")
    return metrics.pop()
