"""What each mechanism of our training step earns: the step with all of them, and without one at a time."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from resnet_backbones import fold_norms

from .detection import LEARNING_RATE, build_detector, make_batch, shared_state
from .networks import autocast
from .settings import Settings
from .timing import Row, measure


def ablations(settings: Settings) -> list[Row]:
    """Seconds of a Faster R-CNN training step; the ratio says what is lost without the mechanism."""
    model = build_detector("ours", settings, shared_state(settings))
    steps = {
        "ours": step(model, settings),
        "without fold_norms": step(model, settings, fold=False),
        "without channels_last": step(model, settings, channels_last=False),
        "without RoIAlign as a weighted sum": step(model, settings, roi_align=False),
        "with fused SGD": step(model, settings, fused=True),
    }
    what = f"ablation, training step (2 images, {settings.name}_fpn, short side {settings.short_side})"
    return measure(what, steps, images=2, rounds=settings.rounds, warmup=1, device=torch.device(settings.device))


def step(
    model: nn.Module,
    settings: Settings,
    fold: bool = True,
    channels_last: bool = True,
    roi_align: bool = True,
    fused: bool = False,
) -> Callable[[], object]:
    model = copy.deepcopy(model).train()
    if fold:
        fold_norms(model)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if not roi_align:
        model.roi_heads.box_roi_pool = MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], 7, 2)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, LEARNING_RATE, momentum=0.9, weight_decay=1e-4, fused=fused)
    images, targets = make_batch(settings)

    def run() -> None:
        with autocast(settings):
            loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run
