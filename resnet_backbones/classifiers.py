"""Classifiers by the name of their backbone, or from a checkpoint."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbones import allow_random_frozen, build_backbone, valid_options
from .errors import UserError, reason, unknown
from .models.classifier import Classifier
from .preprocessing import Normalize, Preprocessing, input_channels
from .weights import Checkpoint, fit_weights, last_layer, load_state_dict, read_ours
from .weights.matching import contents


def build_classifier(
    name: str,
    num_classes: int = 1000,
    *,
    preprocessing: Preprocessing | None = None,
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    **options,
) -> Classifier:
    """A classifier on the backbone `name`; `options`, errors and warnings are those of `build_backbone`.

    The backbone gives its last feature only; `out_features=["res4"]` ends it earlier. `weights` are the backbone's.
    """
    shape_options = {k: v for k, v in options.items() if k not in ("norm", "freeze_at", "weights")}
    with torch.device("meta"):
        *_, last = build_backbone(name, **shape_options).output_shape()
    backbone = build_backbone(name, **options | {"out_features": [last]})
    return Classifier(backbone, num_classes, preprocessing=preprocessing, augment=augment, loss=loss)


def load_classifier(source: str, name: str | None = None, **options) -> Classifier:
    """The classifier at `source`, such as a `model.safetensors` of `resnet-backbones pretrain`, with its preprocessing.

    `name` and `options` of `build_classifier` are needed if the file does not name its architecture. The last layer
    may have any name (`weights.matching.last_layer`). Raises `UserError` if the file is of another architecture, or
    holds no classifier of this form.
    """
    checkpoint = read_ours(source)
    if name in (None, checkpoint.metadata.get("architecture", {}).get("name")):
        name, stated = architecture_of(checkpoint, source)
        options = stated | options
    if name is None:
        raise UserError(f"{source} does not name its architecture; give the backbone's name.")
    with torch.device("meta"), allow_random_frozen():
        layer = last_layer(build_classifier(name, 1, **options).backbone, checkpoint.state)
    if layer is None or checkpoint.state[layer[0]].ndim != 2 or layer[1] not in checkpoint.state:
        raise UserError(
            f"{source} holds no classifier of a backbone and one linear layer on its last feature; give it as "
            f"backbone.weights. It holds {contents(checkpoint.state)}."
        )
    weight, bias = (checkpoint.state[part] for part in layer)
    classes = checkpoint.metadata.get("classes")
    if classes and len(classes) != len(weight):
        raise UserError(f"{source} names {len(classes)} classes, but its {layer[0]} has {len(weight)} outputs.")
    model = build_classifier(name, len(weight), **options)
    fit_weights(model.backbone, checkpoint, source, used=layer)
    load_state_dict(model.fc, {"weight": weight, "bias": bias}, source)
    model.classes = classes
    if model.backbone.preprocessing is not None:
        model.preprocessing = for_channels(model.backbone.preprocessing, input_channels(model.backbone))
        model.prepare = Normalize(model.preprocessing)
    return model


def for_channels(known: Preprocessing, channels: int) -> Preprocessing:
    """`known`, of RGB, for a network whose first convolution was adapted: averaged for one channel, else repeated."""
    if channels == len(known.std):
        return known
    mean, std = known.per_channel().as_rgb()
    if channels == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    mean, std = ([values[k % len(values)] for k in range(channels)] for values in (mean, std))
    return replace(known, mean=mean, std=std, channel_order="RGB", input_range=1.0)


def architecture_of(checkpoint: Checkpoint, source: str, name: str | None = None) -> tuple[str | None, dict]:
    """The `name` and `options` of `build_backbone` in a checkpoint's metadata; None and {} if it has none.

    Args:
        source: the file, for messages.
        name: replaces the name in the file.

    Raises `UserError` naming the file and the key for what `build_backbone` does not take.
    """
    stated = checkpoint.metadata.get("architecture", {})
    name, options = name or stated.get("name"), stated.get("options", {})
    if name is None:
        return None, options
    try:
        valid = valid_options(name) | {"norm"}
    except UserError as error:
        if name != stated.get("name"):
            raise
        raise UserError(f"{source}: architecture.name in its metadata is wrong: {error}") from error
    for option in options:
        if option not in valid:
            raise UserError(f"{source}: architecture.options: " + unknown(f"option of {name}", option, valid))
    try:
        with torch.device("meta"), allow_random_frozen():
            build_backbone(name, **options)
    except (UserError, TypeError, ValueError, RuntimeError) as error:  # whatever torch makes of impossible values
        raise UserError(f"{source}: no {name} can be built with its architecture.options: {reason(error)}") from error
    return name, options
