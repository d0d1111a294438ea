"""The studies of `analyze`: the papers' measurements on any network."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..analysis.blocks import Block, block_shapes, find_blocks
from ..analysis.figures import draw_gradients, draw_lesions, draw_responses
from ..analysis.gradients import gradient_highways, mean_rows, training_mode
from ..analysis.lesions import lesion, plan_lesions
from ..analysis.paths import path_gradient, path_lengths, path_table
from ..analysis.responses import layer_responses
from ..errors import UserError, errors_about
from ..paths import output_folder
from .findings import Findings
from .subjects import Subject, inference_copy, subjects
from .sweeps import shortcuts

SAMPLE = {"responses": 1000, "gradients": 512}  # images, unless --images is given


def run_study(args: argparse.Namespace, options: dict) -> None:
    """Run `args.study`; writes STUDY.json and STUDY.png to the output folder."""
    if args.study == "shortcuts":
        return shortcuts(args, options)
    args.images = args.images or SAMPLE.get(args.study)
    run, draw = STUDIES[args.study]
    studied = list(subjects(args, options, untrained=args.study == "gradients"))
    for subject in studied:  # before the first one takes its time
        with errors_about(subject.label):
            if args.study != "responses":
                find_blocks(subject.model)
    folder = output_folder(args.output)
    settings = {key: getattr(args, key) for key in ("data", "split", "images", "batch_size", "seed", "draws")}
    findings = Findings(folder / f"{args.study}.json", settings | {"options": options})
    networks = {}  # of this command; the file may hold more
    for subject in studied:
        with errors_about(subject.label):
            run(subject, findings, args)
        networks[subject.label] = findings.networks[subject.label]
        draw(networks, folder / f"{args.study}.png")
    print(f"{findings.path} and {args.study}.png beside it")


def responses(subject: Subject, findings: Findings, args: argparse.Namespace) -> None:
    """In evaluation mode; in training mode for an untrained network, whose norms have no statistics yet."""
    if findings.known(subject) is None:
        training = not subject.source
        training_mode(subject.model) if training else subject.model.eval()
        batches = bar(subject.batches(args.images, training), subject, "batch", subject.count(args.images))
        given = 2 if training else 1  # images and targets
        findings.save(subject, layer_responses(subject.model, batches, lambda model, batch: model(*batch[:given])))
    layers = findings.networks[subject.label]
    print(f"{subject.label}: {len(layers)} layers, mean of their standard deviations {fmean(layers.values()):.4f}")


def gradients(subject: Subject, findings: Findings, args: argparse.Namespace) -> None:
    if findings.known(subject) is None:
        blocks = find_blocks(subject.model)
        training_mode(subject.model)
        batches = bar(subject.batches(args.images, True), subject, "batch", subject.count(args.images))
        rows = [gradient_highways(blocks, loss_of(subject.model, batch)) for batch in batches]
        findings.save(subject, mean_rows(rows))
    first = findings.networks[subject.label][0]
    share = "" if first["share"] is None else f", of which by shortcuts alone {abs(100 * first['share']):.1f} %"
    print(f"{subject.label}: norm at {first['block']} {first['norm']:.4g}{share}")


def lesions(subject: Subject, findings: Findings, args: argparse.Namespace) -> None:
    blocks = find_blocks(subject.model)
    subject.model.eval()
    batch = next(iter(subject.batches(1, False)))
    with torch.no_grad():
        shapes = block_shapes(blocks, lambda: subject.model(batch[0]))
    plan = list(plan_lesions(blocks, shapes, args.draws, args.seed))
    if not any(row["kind"] == "single" for row in plan):
        raise UserError("No block can be removed: all change the size, and none has a shortcut.")
    found = findings.known(subject) or {"blocks": [block.name for block in blocks], "experiments": []}
    if not is_begun(found, blocks, plan):
        raise findings.foreign()
    model = inference_copy(subject)
    copies = find_blocks(model)
    rest = plan[len(found["experiments"]) :]
    for experiment in bar(rest, subject, "lesion"):
        with lesion(model, copies, experiment):
            found["experiments"].append(experiment | subject.score(model))
        findings.save(subject, found)
    if any(block.is_residual for block in blocks) and "paths" not in found:
        found["paths"] = by_path_length(subject, args)
        findings.save(subject, found)
    print(lesion_table(subject, found))


def is_begun(found: object, blocks: list[Block], plan: list[dict]) -> bool:
    """Whether `found` holds the beginning of `plan`."""
    try:
        done = [{key: row[key] for key in planned} for row, planned in zip(found["experiments"], plan, strict=False)]
        names = [block.name for block in blocks]
        return found["blocks"] == names and done == plan[: len(found["experiments"])]
    except (TypeError, KeyError, IndexError):
        return False


def by_path_length(subject: Subject, args: argparse.Namespace) -> list[dict]:
    blocks = find_blocks(subject.model)
    count = sum(block.is_residual for block in blocks)
    training_mode(subject.model)
    loss = loss_of(subject.model, next(iter(subject.batches(args.images, True))))
    norms: dict[int, list[float]] = {}
    for length in bar(path_lengths(count), subject, "path length"):
        draws = 1 if length in (0, count) else max(1, args.draws)
        norms[length] = [path_gradient(blocks, length, loss, args.seed + draw) for draw in range(draws)]
    return path_table(count, norms)


def loss_of(model: nn.Module, batch: tuple) -> Callable[[], Tensor]:
    """The training loss of a batch; a detector's samplers draw the same at every call."""

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


def bar(items: Iterable, subject: Subject, unit: str, total: int | None = None) -> tqdm:
    return tqdm(items, desc=subject.label, unit=unit, total=total, disable=None, leave=False)


def draw_metric(networks: dict, path: Path) -> None:
    """Raises `UserError` if classifiers and detectors are mixed."""
    metrics = {"bbox/AP" if "bbox/AP" in found["experiments"][0] else "error" for found in networks.values()}
    if len(metrics) > 1:
        raise UserError("Lesions of classifiers and detectors are not in the same units; study them separately.")
    draw_lesions(networks, metrics.pop(), path)


STUDIES = {
    "responses": (responses, draw_responses),
    "gradients": (gradients, draw_gradients),
    "lesions": (lesions, draw_metric),
}
