"""Convert checkpoints of torchvision, timm, detectron2 and Caffe2 to our form, and ours to theirs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, reason
from ..preprocessing import Preprocessing, imagenet
from . import folding
from .checkpoint import Checkpoint
from .names import CAFFE2, DETECTRON2, OURS, renames
from .renaming import from_timm_preact, to_timm_preact

FORMATS = ("resnet_backbones", "torchvision", "timm", "detectron2", "caffe2")
COLUMNS = {"detectron2": DETECTRON2, "caffe2": CAFFE2}


class Conversion(NamedTuple):
    """The converted checkpoint, the steps taken, and the tensors skipped because they have no name in its format."""

    checkpoint: Checkpoint
    steps: list[str]
    skipped: list[str]


def detect_format(state: dict[str, Tensor]) -> str:
    """The format of the names in a state_dict: "detectron2", "caffe2", "timm" or "resnet_backbones".

    "timm" is its pre-activation nets; all its other names, and torchvision's, are ours.
    """
    if "conv1_w" in state or any("_branch2a_w" in name for name in state):
        return "caffe2"
    if any("stem.conv1." in name or "bottom_up." in name for name in state):
        return "detectron2"
    return "timm" if "stages.0.blocks.0.norm1.weight" in state else "resnet_backbones"


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

    Files of Caffe2 and of detectron2's model zoo do not say what they were trained on, but it is known: BGR images
    without a std, and in a plain ResNet the stride in the first 1x1. Raises `UserError` for tensors with other shapes
    than their names require.
    """
    source_format, state, metadata = detect_format(checkpoint.state), checkpoint.state, dict(checkpoint.metadata)
    if source_format == "timm":
        return Conversion(Checkpoint(from_timm_preact(state), metadata), ["renamed from timm's resnetv2"], [])
    if source_format == "resnet_backbones":
        return Conversion(checkpoint, [], [])
    state, skipped = _renamed(state, COLUMNS[source_format], OURS)
    steps = [f"renamed {len(state)} tensors from {source_format}"]
    if source_format == "detectron2":
        state = _move_background(state, steps, to_front=True)
    else:
        state = folding.with_statistics(state)
        steps.append("added mean 0 and variance 1 to norms that are only a scale and shift")
    published = source_format == "caffe2" or "Model Zoo" in str(metadata.get("author"))
    if published and "preprocessing" not in metadata:
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

    Raises `UserError` if the first layer cannot be changed so, if the format has no name for a tensor, and for tensors
    with other shapes than their names require.
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
            f"{target_format} has no name for {len(needed)} tensors, such as {needed[0]}; it does not have this net."
        )
    steps.append(f"renamed {len(state)} tensors to {target_format}")
    return Conversion(Checkpoint(state, metadata), steps, skipped)


def _renamed(state: dict[str, Tensor], source: int, target: int) -> tuple[dict[str, Tensor], list[str]]:
    """`state` under the names of another column of the table, and the names that it does not have."""
    names = renames(source, target, _laterals(state))
    renamed = {names[name]: tensor for name, tensor in state.items() if name in names}
    return renamed, [name for name in state if name not in names]


def _laterals(state: dict[str, Tensor]) -> int:
    """The number of laterals of its pyramid; 4 if it has none."""
    if any("fpn_lateral" in name for name in state):
        return 4 if any("fpn_lateral2." in name for name in state) else 3
    return 3 if any("inner_blocks.2." in n for n in state) and not any("inner_blocks.3." in n for n in state) else 4


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
    result, box, mask = dict(state), "roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."
    for part in ("weight", "bias"):
        if f"{box}cls_score.{part}" in state:
            result[f"{box}cls_score.{part}"] = state[f"{box}cls_score.{part}"].roll(1 if to_front else -1, 0)
        for name, rows in ((f"{box}bbox_pred.{part}", 4), (f"{mask}{part}", 1)):
            if name in state and to_front:
                result[name] = torch.cat([torch.zeros_like(state[name][:rows]), state[name]])
            elif name in state:
                result[name] = state[name][rows:]
    if f"{box}cls_score.weight" in state:
        steps.append(f"moved the background class to the {'front' if to_front else 'end'}")
    return result
