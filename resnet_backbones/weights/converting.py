"""Convert checkpoints of torchvision, timm, transformers, detectron2 and Caffe2 to our form, and ours to theirs."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, reason
from ..models.naming import named_as_now
from ..preprocessing import Preprocessing, imagenet
from . import folding
from .checkpoint import Checkpoint
from .matching import tails_of
from .names import CAFFE2, DETECTRON2, OURS, renames
from .renaming import TIMM_PREACT, TRANSFORMERS, from_timm_preact, from_transformers, prefixes_of, to_timm_preact

FORMATS = ("resnet_backbones", "torchvision", "timm", "detectron2", "caffe2")
COLUMNS = {"detectron2": DETECTRON2, "caffe2": CAFFE2}
RENAMED_BY = {
    "timm": (from_timm_preact, "renamed from timm's resnetv2"),
    "transformers": (from_transformers, "renamed from transformers"),
    "resnet_backbones": (named_as_now, "renamed from torchvision before 0.13"),
}
# Of FAIR's X-101-32x8d and detectron2's detectors on it, for BGR in [0, 255] (PIXEL_STD in detectron2's configs).
X101_STD = (57.375, 57.12, 58.395)


class Conversion(NamedTuple):
    """The converted checkpoint, the steps taken, and the tensors skipped because its format has no name for them."""

    checkpoint: Checkpoint
    steps: list[str]
    skipped: list[str]


def detect_format(state: dict[str, Tensor]) -> str:
    """The format of the names in a state_dict: "detectron2", "caffe2", "timm", "transformers" or "resnet_backbones".

    "timm" is its pre-activation nets; all its other names, and torchvision's, are ours.
    """
    if prefixes_of("conv1_w", state) or any("_branch2a_w" in name for name in state):
        return "caffe2"
    if any("stem.conv1." in name or "bottom_up." in name for name in state):
        return "detectron2"
    if prefixes_of(TIMM_PREACT, state):
        return "timm"
    return "transformers" if prefixes_of(TRANSFORMERS, state) else "resnet_backbones"


@contextmanager
def _shape_errors() -> Iterator[None]:
    """Raise `UserError` for tensors that have the names of a format but not its shapes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for a wrong number of dimensions
        raise UserError(f"The tensors do not have the shapes that their names require: {reason(error)}.") from error


@_shape_errors()
def to_ours(checkpoint: Checkpoint) -> Conversion:
    """`checkpoint` under our names, changed to take RGB images; its mean and std stay in its metadata.

    Files of Caffe2 and of detectron2's model zoo do not say what they were trained on, but it is known: BGR images,
    with a std only for ResNeXt-101-32x8d, and in a plain ResNet the stride in the first 1x1. Raises `UserError` for
    tensors with other shapes than their names require.
    """
    source_format, state, metadata = detect_format(checkpoint.state), checkpoint.state, dict(checkpoint.metadata)
    if source_format not in COLUMNS:
        renamed, note = RENAMED_BY[source_format]
        state = renamed(state)
        return Conversion(Checkpoint(state, metadata), [note] if state.keys() != checkpoint.state.keys() else [], [])
    state, skipped = _renamed(state, COLUMNS[source_format], OURS)
    steps = [f"renamed {len(state)} tensors from {source_format}"]
    if source_format == "detectron2":
        state = _move_background(state, steps, to_front=True)
    else:
        state = folding.with_statistics(state)
        steps.append("added mean 0 and variance 1 to norms that are only a scale and shift")
    published = source_format == "caffe2" or "Model Zoo" in str(metadata.get("author"))
    if published and "preprocessing" not in metadata:
        if _is_x101(state):
            metadata["preprocessing"] = asdict(replace(imagenet("BGR"), std=X101_STD))
            steps.append(f"assumed the input of X-101-32x8d: BGR in [0, 255], mean subtracted, std {list(X101_STD)}")
        else:
            metadata["preprocessing"] = asdict(imagenet("BGR"))
            steps.append("assumed the input of He et al.: BGR in [0, 255], mean subtracted, no std")
    preprocessing = Checkpoint(state, metadata).preprocessing()
    if preprocessing is not None and preprocessing.channel_order == "BGR":
        state, preprocessing = folding.swap_channels(state, preprocessing)
        metadata["preprocessing"] = asdict(preprocessing)
        steps.append("swapped the first convolution's channels from BGR to RGB")
    if published and "architecture" not in metadata and _is_plain_bottleneck(state):
        metadata["architecture"] = {"options": {"stride_in_1x1": True}}
        steps.append("assumed the stride in the first 1x1 of each bottleneck")
    return Conversion(Checkpoint(state, metadata), steps, skipped)


@_shape_errors()
def from_ours(
    checkpoint: Checkpoint, target_format: str, channel_order: str = "RGB", fold: Sequence[str] = ()
) -> Conversion:
    """Our `checkpoint` in another format, for images in `channel_order`.

    Args:
        target_format: one of `FORMATS`.
        channel_order: "RGB" or "BGR".
        fold: "std" or "std" and "mean", to move into the first convolution and its norm instead of the metadata.

    Raises `UserError` if the first layer cannot be changed in this way, if the format has no name for a tensor, and for
    tensors with other shapes than their names require.
    """
    state, metadata, steps = checkpoint.state, dict(checkpoint.metadata), []
    preprocessing = checkpoint.preprocessing() or Preprocessing()
    for part, fold_part in (("std", folding.fold_std), ("mean", folding.fold_mean)):
        if part in fold:
            state, preprocessing = fold_part(state, preprocessing)
            steps.append(f"folded the {part} into the first convolution")
    if channel_order != preprocessing.channel_order:
        state, preprocessing = folding.swap_channels(state, preprocessing)
        steps.append(f"swapped the first convolution's channels to {channel_order}")
    if fold or channel_order != "RGB" or checkpoint.preprocessing() is not None:
        metadata["preprocessing"] = asdict(preprocessing)
    if target_format == "timm":
        state = to_timm_preact(state)
    if target_format not in COLUMNS:
        return Conversion(Checkpoint(state, metadata), steps, [])
    if target_format == "detectron2":
        state = _move_background(state, steps, to_front=False)
    else:
        state = folding.affine_only(state)
        steps.append("folded the norms' statistics into their scale and shift")
    state, skipped = _renamed(state, OURS, COLUMNS[target_format])
    needed = [name for name in skipped if not name.endswith("num_batches_tracked")]
    if needed:
        raise UserError(
            f"{target_format} has no name for {len(needed)} tensors, such as {needed[0]}; it has no such network."
        )
    steps.append(f"renamed {len(state)} tensors to {target_format}")
    return Conversion(Checkpoint(state, metadata), steps, skipped)


def _renamed(state: dict[str, Tensor], source: int, target: int) -> tuple[dict[str, Tensor], list[str]]:
    """`state` under the names of another column of the table, and the names that it does not have.

    Theirs may have anything before them, such as "model."; ours are whole names.
    """
    names = renames(source, target, _laterals(state))
    new = {name: names.get(name) if source == OURS else _renamed_tail(name, names) for name in state}
    return {new[name]: t for name, t in state.items() if new[name]}, [name for name in state if not new[name]]


def _renamed_tail(name: str, names: dict[str, str]) -> str | None:
    """`name` with its longest part behind a dot that is in `names` replaced; None if there is none."""
    tail = next((tail for tail in tails_of(name) if tail in names), None)
    return None if tail is None else name.removesuffix(tail) + names[tail]


def _laterals(state: dict[str, Tensor]) -> int:
    """The number of laterals of its pyramid; 4 if it has none."""
    if any("fpn_lateral" in name for name in state):
        return 4 if any("fpn_lateral2." in name for name in state) else 3
    return 3 if any("inner_blocks.2." in n for n in state) and not any("inner_blocks.3." in n for n in state) else 4


def _is_x101(state: dict[str, Tensor]) -> bool:
    """Whether it has a ResNeXt-101-32x8d, known by the groups in its 3x3 and by its depth."""
    first, last = "layer1.0.conv2.weight", "layer3.22.conv2.weight"
    return any(
        state[prefix + first].shape == (256, 8, 3, 3) and prefix + last in state for prefix in prefixes_of(first, state)
    )


def _is_plain_bottleneck(state: dict[str, Tensor]) -> bool:
    """Whether it has bottlenecks without groups; He et al. put their stride into the first 1x1."""
    return any(
        name.endswith("layer1.0.conv2.weight")
        and tensor.shape[0] == tensor.shape[1]
        and name.replace("conv2", "conv3") in state
        for name, tensor in state.items()
    )


def _move_background(state: dict[str, Tensor], steps: list[str], to_front: bool) -> dict[str, Tensor]:
    """Move the background class of the box and mask predictors; a note goes into `steps`.

    It is the first class in torchvision; in detectron2 the last one, without boxes and masks.
    """
    result, score = dict(state), "roi_heads.box_predictor.cls_score.weight"
    for prefix, part in itertools.product(prefixes_of(score, state), ("weight", "bias")):
        heads = f"{prefix}roi_heads."
        if (name := f"{heads}box_predictor.cls_score.{part}") in state:
            result[name] = state[name].roll(1 if to_front else -1, 0)
        rows_of = {f"{heads}box_predictor.bbox_pred.{part}": 4, f"{heads}mask_predictor.mask_fcn_logits.{part}": 1}
        for name, rows in ((name, rows) for name, rows in rows_of.items() if name in state):
            if to_front:
                result[name] = torch.cat([torch.zeros_like(state[name][:rows]), state[name]])
            else:
                result[name] = state[name][rows:]
    if prefixes_of(score, state):
        steps.append(f"moved the background class to the {'front' if to_front else 'end'}")
    return result
