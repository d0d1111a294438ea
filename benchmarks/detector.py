"""Faster R-CNN with an FPN: one training step, inference, and the memory that training takes."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .agreement import detection_differences, loss_difference
from .detection import build_detector, inference, make_batch, shared_state, training_step
from .memory import process_peak, tensor_peak
from .peers import BN_IN_EVAL, MissingError
from .settings import Settings
from .timing import Row, add_peaks, measure

CONTENDERS = ("ours", "torchvision", "detectron2")


def detectors(settings: Settings) -> list[Row]:
    device, state = torch.device(settings.device), shared_state(settings)
    models = {who: _built(who, settings, state) for who in CONTENDERS}
    options = {"rounds": settings.rounds, "warmup": 1, "device": device}
    loss_apart, detections_apart = _differences(models, settings)

    def runs_of(prepare: Callable) -> dict[str, Callable[[], object] | str]:
        runs = {who: m if isinstance(m, str) else prepare(who, m, settings) for who, m in models.items()}
        if settings.compile:
            for who in CONTENDERS[:2]:
                model = _built(who, settings, state)
                runs[f"{who} compiled"] = model if isinstance(model, str) else prepare(who, model, settings, True)
        return runs

    steps = runs_of(training_step)
    training = measure(f"detector training step (2 images, {_shape(settings)})", steps, images=2, **options)
    add_peaks(training, steps, device)
    training[1].differences = loss_apart

    runs = runs_of(inference)
    detection = measure(f"detector inference (1 image, {_shape(settings)})", runs, images=1, **options)
    add_peaks(detection, runs, device)
    detection[1].differences = detections_apart
    return training + detection


def memory_of_training(settings: Settings) -> list[Row]:
    """Peaks of the training step, on a CPU also in a process of its own; also with BN in evaluation mode."""
    device, state = torch.device(settings.device), shared_state(settings)
    rows = []
    for who in (*CONTENDERS[:2], BN_IN_EVAL, *CONTENDERS[2:]):
        row = Row(f"detector training step, memory (2 images, {_shape(settings)})", who)
        model = _built(who, settings, state)
        if isinstance(model, str):
            row.remark = model
        else:
            step = training_step(who, model, settings)
            step()  # from now on the optimizer's momentum exists
            row.peak_bytes = tensor_peak(step, device)
            if device.type == "cpu":
                row.process_bytes = process_peak(build_step, who, settings)
        rows.append(row)
    return rows


def build_step(who: str, settings: Settings) -> Callable[[], object]:
    """A contender's step from scratch, for a process of its own."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return training_step(who, build_detector(who, settings, shared_state(settings)), settings)


def _differences(models: dict[str, nn.Module | str], settings: Settings) -> tuple[dict[str, float], dict[str, float]]:
    """How torchvision's losses and detections differ from ours, in fp32 and before any training."""
    ours, theirs = models["ours"], models["torchvision"]
    if isinstance(theirs, str):
        return {}, {}
    losses = {"losses": loss_difference(ours.train(), theirs.train(), *make_batch(settings))}
    settings = dataclasses.replace(settings, amp="none")
    pairs = (("ours", ours), ("torchvision", theirs))
    return losses, detection_differences(*(inference(who, model, settings)()[0] for who, model in pairs))


def _shape(settings: Settings) -> str:
    return f"{settings.name}_fpn, {settings.short_side}x{settings.short_side * 3 // 2}"


def _built(who: str, settings: Settings, state: dict[str, Tensor]) -> nn.Module | str:
    """A detector, or why there is none."""
    try:
        return build_detector(who, settings, state)
    except MissingError as reason:
        return str(reason)
