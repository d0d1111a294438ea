"""Checkpoints of torchvision, timm, detectron2 and Caffe2 in our form, and ours in theirs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, reason
from ..preprocessing import Preprocessing, imagenet
from . import folding
from .names import CAFFE2, DETECTRON2, OURS, renames
from .reading import Checkpoint
from .renaming import from_timm_preact, to_timm_preact

FORMATS = ("resnet_backbones", "torchvision", "timm", "detectron2", "caffe2")
COLUMNS = {"detectron2": DETECTRON2, "caffe2": CAFFE2}


class Conversion(NamedTuple):
    """A checkpoint in another form: what was done, and which tensors have no name there and were left out."""

    checkpoint: Checkpoint
    steps: list[str]
    left: list[str]


def recognise(state: dict[str, Tensor]) -> str:
    """Whose names a state_dict has: "detectron2", "caffe2", "timm" (of its pre-activation nets) or "resnet_backbones",
    whose names are torchvision's and timm's, too.
    """
    if "conv1_w" in state or any("_branch2a_w" in name for name in state):
        return "caffe2"
    if any("stem.conv1." in name or "bottom_up." in name for name in state):
        return "detectron2"
    return "timm" if "stages.0.blocks.0.norm1.weight" in state else "resnet_backbones"


@contextmanager
def _tensors_as_named() -> Iterator[None]:
    """`UserError` for tensors whose names are a library's, but whose shapes or types are not."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever torch makes of the wrong number of dimensions
        raise UserError(f"The tensors are not of the shapes that their names ask for: {reason(error)}.") from error


@_tensors_as_named()
def to_ours(checkpoint: Checkpoint) -> Conversion:
    """`checkpoint` under our names, for RGB images. Mean and std stay in its metadata.

    What Caffe2's files and those of detectron2's model zoo do not say is known of them: BGR, no std, and in a plain
    ResNet the stride in the first 1x1. Raises `UserError` where the tensors are not what their names say.
    """
    form, steps = recognise(checkpoint.state), []
    state, metadata = checkpoint.state, dict(checkpoint.metadata)
    if form == "timm":
        return Conversion(Checkpoint(from_timm_preact(state), metadata), ["renamed from timm's resnetv2"], [])
    if form == "resnet_backbones":
        return Conversion(checkpoint, steps, [])
    names = renames(COLUMNS[form], OURS, _laterals(state))
    left = [name for name in state if name not in names]
    state = {names[name]: tensor for name, tensor in state.items() if name in names}
    steps.append(f"renamed {len(state)} tensors from {form}")
    if form == "detectron2":
        state, done = _class_order(state, background_first=True)
        steps += done
    if form == "caffe2":
        state = folding.with_statistics(state)
        steps.append("gave norms of scale and shift alone the statistics that change nothing")
    published = form == "caffe2" or "Model Zoo" in str(metadata.get("author"))
    if published and "preprocessing" not in metadata:
        metadata["preprocessing"] = asdict(imagenet("BGR"))
        steps.append("took it for weights of He et al.: BGR in [0, 255], mean subtracted, no std")
    preprocessing = Checkpoint(state, metadata).preprocessing()
    if preprocessing is not None and preprocessing.channel_order == "BGR":
        state, preprocessing = folding.swap_channels(state, preprocessing)
        metadata["preprocessing"] = asdict(preprocessing)
        steps.append("turned the first convolution from BGR to RGB")
    if published and "architecture" not in metadata and _is_plain_bottleneck(state):
        metadata["architecture"] = {"options": {"stride_in_1x1": True}}
        steps.append("took its stride to be in the first 1x1 of a bottleneck")
    return Conversion(Checkpoint(state, metadata), steps, left)


@_tensors_as_named()
def from_ours(checkpoint: Checkpoint, form: str, channel_order: str = "RGB", fold: Sequence[str] = ()) -> Conversion:
    """Our `checkpoint` in the form of a library, for images in `channel_order`.

    Args:
        form: one of `FORMATS`.
        fold: of "std" and "mean", what goes into the first convolution and its norm instead of the metadata.

    Raises `UserError` where the first layer cannot take it, and where the tensors are not what their names say.
    """
    state, metadata, steps = checkpoint.state, dict(checkpoint.metadata), []
    preprocessing = checkpoint.preprocessing() or Preprocessing()
    for part in ("std", "mean"):
        if part in fold:
            state, preprocessing = {"std": folding.fold_std, "mean": folding.fold_mean}[part](state, preprocessing)
            steps.append(f"folded the {part} into the first convolution")
    if channel_order != preprocessing.channel_order:
        state, preprocessing = folding.swap_channels(state, preprocessing)
        steps.append(f"turned the first convolution to {channel_order}")
    if fold or channel_order != "RGB" or checkpoint.preprocessing() is not None:
        metadata["preprocessing"] = asdict(preprocessing)
    if form == "timm":
        state = to_timm_preact(state)
    if form not in COLUMNS:
        return Conversion(Checkpoint(state, metadata), steps, [])
    if form == "caffe2":
        state = folding.affine_only(state)
        steps.append("put the norms' statistics into their scale and shift")
    else:
        state, done = _class_order(state, background_first=False)
        steps += done
    names = renames(OURS, COLUMNS[form], _laterals(state))
    left = [name for name in state if name not in names]
    essential = [name for name in left if "num_batches" not in name]
    if essential:
        raise UserError(
            f"{form} has no name for {len(essential)} tensors, such as {essential[0]}: it does not have this network."
        )
    state = {names[name]: tensor for name, tensor in state.items() if name in names}
    steps.append(f"renamed {len(state)} tensors to {form}")
    return Conversion(Checkpoint(state, metadata), steps, left)


def _laterals(state: dict[str, Tensor]) -> int:
    """How many laterals its pyramid has; four where there is none."""
    if any("fpn_lateral" in name for name in state):
        return 4 if any("fpn_lateral2." in name for name in state) else 3
    return 3 if any("inner_blocks.2." in n for n in state) and not any("inner_blocks.3." in n for n in state) else 4


def _is_plain_bottleneck(state: dict[str, Tensor]) -> bool:
    """Whether it has bottlenecks without groups, whose stride He et al. put into the first 1x1."""
    return any(
        name.endswith("layer1.0.conv2.weight") and tensor.shape[0] == tensor.shape[1] and
        name.replace("conv2", "conv3") in state
        for name, tensor in state.items()
    )  # fmt: skip


def _class_order(state: dict[str, Tensor], background_first: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Box and mask predictors with torchvision's classes, the background first, or detectron2's, where it is last and
    has neither boxes nor masks.
    """
    result, box, mask = dict(state), "roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."
    for part in ("weight", "bias"):
        if f"{box}cls_score.{part}" in state:
            result[f"{box}cls_score.{part}"] = state[f"{box}cls_score.{part}"].roll(1 if background_first else -1, 0)
        for name, rows in ((f"{box}bbox_pred.{part}", 4), (f"{mask}{part}", 1)):
            if name in state and background_first:
                result[name] = torch.cat([torch.zeros_like(state[name][:rows]), state[name]])
            elif name in state:
                result[name] = state[name][rows:]
    moved = f"{box}cls_score.weight" in state
    return result, [f"moved the background class to the {'front' if background_first else 'end'}"] if moved else []
