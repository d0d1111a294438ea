"""Faster R-CNN with an FPN: one training step, what memory it takes, and inference."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .agreement import detection_differences, loss_difference
from .detection import build_detector, inference, make_batch, shared_state, training_step
from .memory import process_peak
from .networks import compiled
from .peers import BN_IN_EVAL, MissingError
from .settings import Settings
from .timing import Row, add_peaks, measure

CONTENDERS = ("ours", "torchvision", "detectron2")


def detectors(settings: Settings) -> list[Row]:
    device, state = torch.device(settings.device), shared_state(settings)
    models = {who: _built(who, settings, state) for who in CONTENDERS}
    if settings.compile:
        models |= {f"{who} compiled": _compiled(who, settings, state) for who in CONTENDERS[:2]}
    shape = f"{settings.name}_fpn, {settings.short_side}x{settings.short_side * 3 // 2}"
    options = {"rounds": settings.rounds, "warmup": 1, "device": device}
    comparable = not isinstance(models["torchvision"], str)

    steps = {who: m if isinstance(m, str) else training_step(who, m, settings) for who, m in models.items()}
    training = measure(f"detector training step (2 images, {shape})", steps, images=2, **options)
    add_peaks(training, steps, device)
    if comparable:
        training[1].differences["losses"] = loss_difference(
            models["ours"], models["torchvision"], *make_batch(settings)
        )
    training.append(_bn_in_eval(training[0].measured, state, settings))
    if device.type == "cpu":
        _add_process_peaks(training, settings)

    runs = {who: m if isinstance(m, str) else inference(m, settings) for who, m in models.items()}
    detection = measure(f"detector inference (1 image, {shape})", runs, images=1, **options)
    add_peaks(detection, runs, device)
    if comparable:
        detection[1].differences |= detection_differences(runs["ours"]()[0], runs["torchvision"]()[0])
    return training + detection


def build_step(who: str, settings: Settings) -> Callable[[], object]:
    """A contender's step from nothing, for a process of its own."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return training_step(who, build_detector(who, settings, shared_state(settings)), settings)


def _built(who: str, settings: Settings, state: dict[str, Tensor]) -> nn.Module | str:
    """A detector, or why there is none."""
    try:
        return build_detector(who, settings, state)
    except MissingError as reason:
        return str(reason)


def _compiled(who: str, settings: Settings, state: dict[str, Tensor]) -> nn.Module | str:
    """The same whose backbone and FPN are compiled."""
    model = _built(who, settings, state)
    if not isinstance(model, str):
        model.backbone = compiled(who, model.backbone)
    return model


def _bn_in_eval(measured: str, state: dict[str, Tensor], settings: Settings) -> Row:
    """The memory of torchvision's detector with BN in evaluation, which is not timed."""
    model = _built(BN_IN_EVAL, settings, state)
    if isinstance(model, str):
        return Row(measured, BN_IN_EVAL, remark=model)
    row, step = Row(measured, BN_IN_EVAL, remark="not timed"), training_step(BN_IN_EVAL, model, settings)
    step()  # the optimiser's momentum is there from now on
    add_peaks([row], {BN_IN_EVAL: step}, torch.device(settings.device))
    return row


def _add_process_peaks(rows: list[Row], settings: Settings) -> None:
    for row in rows:
        if row.peak_bytes is not None and not row.contender.endswith("compiled"):
            row.process_bytes = process_peak(build_step, row.contender, settings)
