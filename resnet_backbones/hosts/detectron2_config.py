"""detectron2's config keys as arguments of `build_backbone`. Needs no detectron2: its config is a mapping."""

from contextlib import nullcontext
from typing import Any

from torch import nn

from .. import backbones
from ..errors import UserError

FORMS = {"": "plain", "_fpn": "fpn", "_c4": "c4", "_retinanet_fpn": "retinanet"}


def build_from(cfg: Any, name: str, form: str, in_channels: int) -> nn.Module:
    """The backbone `name` in one of `FORMS` as detectron2's `cfg` says.

    Reads MODEL.BACKBONE.FREEZE_AT and, if `add_config` was called, WEIGHTS; MODEL.RESNETS.NORM, OUT_FEATURES,
    and for residual families STRIDE_IN_1X1, RES5_DILATION, DEFORM_ON_PER_STAGE and DEFORM_MODULATED;
    MODEL.FPN.IN_FEATURES, OUT_CHANNELS and NORM. Depth, groups and widths come from the name.

    Raises `UserError` for what the backbone cannot do, and if the weights' preprocessing contradicts PIXEL_MEAN,
    PIXEL_STD and INPUT.FORMAT.
    """
    model = cfg.MODEL
    options = _residual_options(model.RESNETS, name)
    options |= {"norm": model.RESNETS.NORM or "none", "freeze_at": model.BACKBONE.FREEZE_AT}
    if in_channels != 3:
        options["in_channels"] = in_channels
    if form == "plain":
        options["out_features"] = list(model.RESNETS.OUT_FEATURES)
    elif form == "c4":
        options["out_features"] = ["res4"]
    elif form == "res5":
        options["out_features"] = ["res4", "res5"]
    else:
        name += "_fpn"
        options |= _pyramid_options(model.FPN, form)
    weights = model.BACKBONE.get("WEIGHTS", "")
    with backbones.allow_random_frozen() if model.WEIGHTS else nullcontext():  # detectron2 loads them later
        backbone = backbones.build_backbone(name, weights=weights or None, **options)
    if weights:
        _check_preprocessing(cfg, backbone, weights)
    return backbone


def _residual_options(resnets: Any, name: str) -> dict:
    options = {"stride_in_1x1": resnets.STRIDE_IN_1X1}
    if resnets.RES5_DILATION not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION is {resnets.RES5_DILATION}; it must be 1 or 2.")
    if resnets.RES5_DILATION == 2:
        options |= {"output_stride": 16, "dilate_first": True}
    deformed = [f"res{k + 2}" for k, on in enumerate(resnets.DEFORM_ON_PER_STAGE) if on]
    if deformed:
        options |= {"deform_on": deformed, "deform_modulated": resnets.DEFORM_MODULATED}
    valid = backbones.valid_options(name)
    # Other families have no stride to place; without these two the heads would get something other than requested.
    for option, key in (("output_stride", "RES5_DILATION"), ("deform_on", "DEFORM_ON_PER_STAGE")):
        if option in options and option not in valid:
            raise UserError(
                f"MODEL.RESNETS.{key} is {resnets[key]}, but {name} has no {option}; leave it at detectron2's default "
                "or choose a residual network."
            )
    return {k: v for k, v in options.items() if k in valid}


def _pyramid_options(fpn: Any, form: str) -> dict:
    if fpn.FUSE_TYPE != "sum":
        raise UserError(f"MODEL.FPN.FUSE_TYPE is {fpn.FUSE_TYPE}; here it must be sum.")
    default = ["res3", "res4", "res5"] if form == "retinanet" else ["res2", "res3", "res4", "res5"]
    levels = [f"p{feature[3:]}" for feature in fpn.IN_FEATURES or default]
    top = ["p6", "p7"] if form == "retinanet" else ["p6"]
    return {"out_features": levels + top, "fpn_channels": fpn.OUT_CHANNELS, "fpn_norm": fpn.NORM or "none"}


def _check_preprocessing(cfg: Any, backbone: nn.Module, weights: str) -> None:
    if backbone.preprocessing is None:
        return
    order = backbone.preprocessing.channel_order
    if order != cfg.INPUT.FORMAT:
        raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, but {weights} was trained on {order}; set it to {order}.")
    for key, trained in zip(("PIXEL_MEAN", "PIXEL_STD"), backbone.preprocessing.as_rgb(), strict=True):
        wanted = [255 * v for v in trained][:: 1 if order == "RGB" else -1]
        given = list(cfg.MODEL[key])
        if any(abs(a - b) > 0.5 for a, b in zip(wanted, given, strict=True)):
            raise UserError(
                f"MODEL.{key} is {given}, but {weights} was trained with {[round(v, 3) for v in wanted]} for "
                f"INPUT.FORMAT {cfg.INPUT.FORMAT}; make them the same."
            )
