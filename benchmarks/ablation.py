"""What each mechanism of our training step earns: the step with all of them, and without one at a time."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from resnet_backbones import fold_norms

from .detection import build_detector, sgd_step, shared_state
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
    return sgd_step(model, settings, fused)
