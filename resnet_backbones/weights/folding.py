"""What the input looks like, moved into the first convolution; and BN's statistics, moved into its affine form."""

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UserError
from ..preprocessing import Preprocessing

EPS = 1e-5  # of BN, everywhere
# The first convolution and the norm behind it, in a plain and in a deep stem.
STEMS = {"conv1.weight": "bn1.running_mean", "conv1.0.weight": "conv1.1.running_mean"}


def swap_channels(state: dict[str, Tensor], preprocessing: Preprocessing) -> tuple[dict[str, Tensor], Preprocessing]:
    """The same network for images in the other channel order, exactly: RGB for BGR, or the reverse."""
    weight = _first_convolution(state)
    order = "RGB" if preprocessing.channel_order == "BGR" else "BGR"
    swapped = replace(
        preprocessing, mean=list(preprocessing.mean)[::-1], std=list(preprocessing.std)[::-1], channel_order=order
    )
    return state | {weight: state[weight].flip(1)}, swapped


def fold_std(state: dict[str, Tensor], preprocessing: Preprocessing) -> tuple[dict[str, Tensor], Preprocessing]:
    """The same network for images in [0, 255] that are not divided by a standard deviation, exactly.

    conv((x - mean) / std) = conv'(x - mean), as in the weights of He et al.
    """
    weight = _first_convolution(state)
    scale = torch.tensor(preprocessing.std, dtype=torch.float64) * (255 / preprocessing.input_range)
    mean = [255 / preprocessing.input_range * v for v in preprocessing.per_channel().mean]
    folded = (state[weight].double() / scale[:, None, None]).to(state[weight].dtype)
    return state | {weight: folded}, replace(preprocessing, mean=mean, std=[1.0, 1.0, 1.0], input_range=255.0)


def fold_mean(state: dict[str, Tensor], preprocessing: Preprocessing) -> tuple[dict[str, Tensor], Preprocessing]:
    """The same network for images from which no mean is subtracted: conv(x - mean) = conv(x) - sum of w · mean, which
    goes into the running mean of the norm behind it. After `fold_std`.

    Exact but for the outermost rows and columns: the convolution pads with zeros, which were the mean before.
    """
    weight = _first_convolution(state)
    stem = next(stem for stem in STEMS if weight.endswith(stem))
    running_mean = weight.removesuffix(stem) + STEMS[stem]
    if running_mean not in state:
        raise UserError("The mean can only be folded where a batch norm follows the first convolution.")
    mean = torch.tensor(preprocessing.per_channel().mean, dtype=torch.float64) / torch.tensor(preprocessing.std)
    shift = (state[weight].double() * mean[:, None, None]).sum((1, 2, 3))
    shifted = (state[running_mean].double() + shift).to(state[running_mean].dtype)
    return state | {running_mean: shifted}, replace(preprocessing, mean=[0.0, 0.0, 0.0])


def affine_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every BN as y = x · weight + bias, its statistics left out: the form that Caffe2 freezes it in."""
    result = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if not any(k.endswith(".running_var") for k in state):
        raise UserError("Caffe2's form is of batch norms, and this network has none.")
    for name in [k for k in state if k.endswith(".running_var")]:
        norm = name.removesuffix("running_var")
        scale = state[f"{norm}weight"].double() / (result.pop(name).double() + EPS).sqrt()
        bias = state[f"{norm}bias"].double() - result.pop(f"{norm}running_mean").double() * scale
        result[f"{norm}weight"], result[f"{norm}bias"] = scale.to(state[name].dtype), bias.to(state[name].dtype)
    return result


def with_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse: statistics that change nothing, mean 0 and variance 1 - eps, for norms that have none."""
    result = dict(state)
    for name, weight in state.items():
        norm = name.removesuffix("weight")
        if weight.ndim == 1 and name.endswith(".weight") and f"{norm}running_var" not in state:
            result[f"{norm}running_mean"] = torch.zeros_like(weight)
            result[f"{norm}running_var"] = torch.ones_like(weight) - EPS
    return result


def _first_convolution(state: dict[str, Tensor]) -> str:
    """The name of the first convolution, whatever stands before it."""
    prefixes = ("", "body.", "backbone.", "backbone.body.")
    found = [prefix + stem for prefix in prefixes for stem in STEMS if prefix + stem in state]
    if not found or state[found[0]].shape[1] != 3:
        raise UserError("Channels can only be swapped or folded in a network whose first layer, conv1, takes three.")
    return found[0]
