"""How far the results of two nets with the same weights differ."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def feature_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference over all features, relative to the largest value of each of ours."""
    return max(float((b - a).abs().max() / a.abs().max()) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
def loss_difference(ours: nn.Module, theirs: nn.Module, images: list[Tensor], targets: list[dict]) -> float:
    """The largest difference over all losses of two detectors in torchvision's form, relative to each of ours."""
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(1)  # for the draw of anchors
        with all_rois(model):
            losses.append(model(images, [dict(target) for target in targets]))
    return max(float((losses[1][name] - loss).abs() / loss.abs()) for name, loss in losses[0].items())


@contextmanager
def all_rois(model: nn.Module) -> Iterator[None]:
    """Take all RoIs: which of them a draw takes depends on the last bit of the proposals' scores."""
    sampler = model.roi_heads.fg_bg_sampler
    count, sampler.batch_size_per_image = sampler.batch_size_per_image, 10**6
    try:
        yield
    finally:
        sampler.batch_size_per_image = count


def detection_differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """The differences of two detectors on an image, each detection of theirs paired with our nearest box of its class.

    "unpaired" are those that have none within a pixel, and how many more ours has; "boxes, px" and "scores" are the
    largest differences over all pairs.
    """
    theirs_only, ours_only = len(theirs["boxes"]), len(ours["boxes"])
    if not theirs_only or not ours_only:
        return {"unpaired": max(theirs_only, ours_only)}
    apart = (theirs["boxes"][:, None] - ours["boxes"]).abs().amax(2)
    apart[theirs["labels"][:, None] != ours["labels"]] = float("inf")
    pixels, nearest = apart.min(1)
    paired = pixels < 1
    scores = (theirs["scores"] - ours["scores"][nearest]).abs()
    greatest = {name: float(v[paired].max()) if paired.any() else 0.0 for name, v in
                (("boxes, px", pixels), ("scores", scores))}  # fmt: skip
    return greatest | {"unpaired": max(theirs_only, ours_only) - len(nearest[paired].unique())}
