"""Option A puts new channels at the end or on both sides: find out which kind a file was trained with."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..models.shortcuts import ZERO_PADDED, ZeroPad

logger = logging.getLogger(__name__)

CLEAR = 3.0  # one kind fits this many times better than the other; published nets: 30 and more
GOOD = 0.05  # the largest mismatch of a kind that fits; published nets: 0.003
IMAGES, POSITIONS = 16, 8  # POSITIONS² of the last feature in each image


def find_zero_padding(backbone: nn.Module, source: str) -> None:
    """Set the kind of the zero-padded shortcuts in `backbone` to that of its weights, just loaded from `source`.

    Names and shapes are the same for both kinds, so they do not tell. But the running means of the norms remember the
    channels that a shortcut led to in training: behind the right kind, noise has nearly the same means.

    Raises `UserError` if the means contradict the option `shortcut` that the backbone was built with, or if they do
    not tell and there is no such option. Weights that were never trained are taken as they are.
    """
    pads = [module for module in backbone.modules() if isinstance(module, ZeroPad)]
    norms = [module for module in backbone.modules() if hasattr(module, "running_mean")]
    if not pads or (norms and not any(norm.bias.any() for norm in norms)):
        return
    options = getattr(backbone, "architecture", {}).get("options", {})
    stated, built = options.get("shortcut"), pads[0].kind
    means = {kind: _mismatches(backbone, pads, kind) for kind in ZERO_PADDED}
    pairs = [pair for pair in zip(*means.values(), strict=True) if abs(pair[0] - pair[1]) > 1e-6]
    mismatch = {kind: sum(values) / len(values) for kind, values in zip(means, zip(*pairs, strict=True), strict=False)}
    best, worst = sorted(mismatch, key=mismatch.get) or (built, built)
    is_clear = bool(mismatch) and mismatch[best] <= GOOD and mismatch[worst] >= CLEAR * mismatch[best]
    numbers = ", ".join(f"{value:.3f} with {kind}" for kind, value in mismatch.items()) or "there are none"
    if stated is None and not is_clear:
        raise UserError(
            f"{source} does not say whether its zero-padded shortcuts are A or A_centered, and its batch norms do not "
            f"tell (mismatch of their means: {numbers}); give backbone.shortcut."
        )
    if stated is not None and is_clear and stated != best:
        raise UserError(
            f"{source} was trained with backbone.shortcut={best}, not {stated}: the mismatch of the means of its batch "
            f"norms is {numbers}."
        )
    kind = stated or best
    for pad in pads:
        pad.kind = kind
    if stated is None and kind != built:
        options["shortcut"] = kind
    logger.info("%s: shortcut %s; mismatch of the means of its batch norms: %s", source, kind, numbers)


def _mismatches(backbone: nn.Module, pads: list[ZeroPad], kind: str) -> list[float]:
    """For each norm the squared distance of its running mean from the mean over noise, in variances, over channels.

    Each norm passes on values normalized by the noise's own statistics, so that the next one sees what it saw in
    training as far as the shortcuts lead to the same channels.
    """
    found = []

    def compare(norm: nn.Module, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        mean = inputs[0].mean((0, 2, 3))
        distance = (mean - norm.running_mean) ** 2 / (norm.running_var + norm.eps)
        found.append(float(distance.clamp(max=1).mean()))  # a channel without variance must not outweigh the others
        return F.batch_norm(inputs[0], None, None, norm.weight, norm.bias, training=True)

    for pad in pads:
        pad.kind = kind
    norms = [module for module in backbone.modules() if hasattr(module, "running_mean")]
    hooks = [norm.register_forward_hook(compare) for norm in norms]
    conv = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    side = POSITIONS * max(shape.stride for shape in backbone.output_shape().values())
    images = torch.randn(IMAGES, conv.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(images.to(conv.weight))
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    return found
