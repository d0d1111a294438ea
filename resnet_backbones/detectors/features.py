"""The features of a backbone that the heads of any library use, checked."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..errors import UserError, unknown
from ..models.backbone import ShapeSpec
from ..models.freezing import split_last_stage

BOX_HEADS = ("mlp", "res5")
DENSE_LEVELS = ["p3", "p4", "p5", "p6", "p7"]


class HeadFeatures(NamedTuple):
    """The shapes of the features that the RPN uses, and the names of those that RoIs are pooled from.

    With `box_head="res5"`, also the stage that was taken out of the backbone, and its width.
    """

    shapes: dict[str, ShapeSpec]
    roi_levels: list[str]
    res5: nn.Module | None
    res5_channels: int


def head_features(backbone: nn.Module, anchor_sizes: Sequence[Sequence[int]], box_head: str) -> HeadFeatures:
    """Features of two-stage heads: a pyramid, pooled from p2 … p5 (arXiv 1612.03144 §4.2), or one map; with box_head
    "res5" res4, and the stage after it moves from the backbone to the caller (arXiv 1512.03385, appendix A).

    Raises `UserError` if the backbone's features or the anchors are not suitable.
    """
    if box_head not in BOX_HEADS:
        raise UserError(unknown("detector.box_head", box_head, BOX_HEADS))
    res5, res5_channels = _take_res5(backbone) if box_head == "res5" else (None, 0)
    shapes = backbone.output_shape()
    roi_levels = [f for f in shapes if f in ("p2", "p3", "p4", "p5") or len(shapes) == 1]
    if not roi_levels:
        raise UserError(
            f"The backbone gives {', '.join(shapes)}; these heads need a pyramid: use a NAME_fpn backbone; or one map: "
            "out_features=[res5] with output_stride=16 (DC5); or detector.box_head=res5 (C4)."
        )
    if len(anchor_sizes) != len(shapes):
        raise UserError(
            f"detector.anchor_sizes has {len(anchor_sizes)} levels, but the backbone gives {len(shapes)}: "
            f"{', '.join(shapes)}."
        )
    if len({len(sizes) for sizes in anchor_sizes}) > 1:
        raise UserError(f"detector.anchor_sizes must list equally many sizes on every level, got {anchor_sizes}.")
    return HeadFeatures(shapes, roi_levels, res5, res5_channels)


def check_dense_levels(backbone: nn.Module, anchor_sizes: Sequence[Sequence[int]] | None = None) -> None:
    """Raise `UserError` if a one-stage detector cannot work with the backbone's features or with these anchors."""
    shapes = list(backbone.output_shape())
    if shapes != DENSE_LEVELS:
        raise UserError(
            f"One-stage detectors need p3 … p7 and the backbone gives {', '.join(shapes)}: use a NAME_fpn backbone "
            "with out_features=[p3, p4, p5, p6, p7]."
        )
    if anchor_sizes is not None and (
        len(anchor_sizes) != len(DENSE_LEVELS) or len({len(sizes) for sizes in anchor_sizes}) > 1
    ):
        raise UserError(f"detector.anchor_sizes must list equally many sizes for each of p3 … p7, got {anchor_sizes}.")


def _take_res5(backbone: nn.Module) -> tuple[nn.Module, int]:
    shapes = backbone.output_shape()
    if list(shapes) != ["res4", "res5"]:
        raise UserError(
            f"detector.box_head=res5 needs a backbone with out_features=[res4, res5], this one gives "
            f"{', '.join(shapes)}."
        )
    return split_last_stage(backbone), shapes["res5"].channels
