"""Fold preprocessing into the first convolution, and BN's statistics into its scale and shift."""

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UserError
from ..preprocessing import Preprocessing
from .renaming import prefixes_of

EPS = 1e-5  # of every BN
# The first convolution and the norm behind it, in a plain and in a deep stem.
STEMS = {"conv1.weight": "bn1.running_mean", "conv1.0.weight": "conv1.1.running_mean"}


def swap_channels(state: dict[str, Tensor], preprocessing: Preprocessing) -> tuple[dict[str, Tensor], Preprocessing]:
    """The same network for images in the other channel order; exact."""
    order = "RGB" if preprocessing.channel_order == "BGR" else "BGR"
    swapped = replace(
        preprocessing, mean=list(preprocessing.mean)[::-1], std=list(preprocessing.std)[::-1], channel_order=order
    )
    return state | {weight: state[weight].flip(1) for weight in _first_convolutions(state)}, swapped


def fold_std(state: dict[str, Tensor], preprocessing: Preprocessing) -> tuple[dict[str, Tensor], Preprocessing]:
    """The same network for images in [0, 255] that are not divided by a standard deviation; exact.

    conv((x - mean) / std) = conv'(x - mean), as in the weights of He et al.
    """
    scale = torch.tensor(preprocessing.std, dtype=torch.float64) * (255 / preprocessing.input_range)
    mean = [255 / preprocessing.input_range * v for v in preprocessing.per_channel().mean]
    folded = {
        name: (state[name].double() / scale[:, None, None]).to(state[name].dtype) for name in _first_convolutions(state)
    }
    return state | folded, replace(preprocessing, mean=mean, std=[1.0, 1.0, 1.0], input_range=255.0)


def fold_mean(state: dict[str, Tensor], preprocessing: Preprocessing) -> tuple[dict[str, Tensor], Preprocessing]:
    """The same network for images from which no mean is subtracted; call it after `fold_std`.

    conv(x - mean) = conv(x) - Σ w · mean, and the sum goes into the running mean of the norm behind it. Exact except
    at the border, because the convolution pads with zeros, which stood for the mean before. Raises `UserError` if no
    batch norm follows.
    """
    weight = _first_convolutions(state)[0]
    stem = next(stem for stem in STEMS if weight.endswith(stem))
    running_mean = weight.removesuffix(stem) + STEMS[stem]
    if running_mean not in state:
        raise UserError("The mean can only be folded if a batch norm follows the first convolution.")
    mean = torch.tensor(preprocessing.per_channel().mean, dtype=torch.float64) / torch.tensor(preprocessing.std)
    shift = (state[weight].double() * mean[:, None, None]).sum((1, 2, 3))
    shifted = (state[running_mean].double() + shift).to(state[running_mean].dtype)
    return state | {running_mean: shifted}, replace(preprocessing, mean=[0.0, 0.0, 0.0])


def affine_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every BN as y = x · weight + bias without statistics, as Caffe2 freezes it.

    Raises `UserError` for a network without BN.
    """
    result = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if not any(k.endswith(".running_var") for k in state):
        raise UserError("Caffe2's format needs batch norms, and this network has none.")
    for name in [k for k in state if k.endswith(".running_var")]:
        norm = name.removesuffix("running_var")
        scale = state[f"{norm}weight"].double() / (result.pop(name).double() + EPS).sqrt()
        bias = state[f"{norm}bias"].double() - result.pop(f"{norm}running_mean").double() * scale
        result[f"{norm}weight"], result[f"{norm}bias"] = scale.to(state[name].dtype), bias.to(state[name].dtype)
    return result


def with_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse: mean 0 and variance 1 - eps, which change nothing, for norms without statistics."""
    result = dict(state)
    for name, weight in state.items():
        norm = name.removesuffix("weight")
        if weight.ndim == 1 and name.endswith(".weight") and f"{norm}running_var" not in state:
            result[f"{norm}running_mean"] = torch.zeros_like(weight)
            result[f"{norm}running_var"] = torch.ones_like(weight) - EPS
    return result


def _first_convolutions(state: dict[str, Tensor]) -> list[str]:
    """The names of the first convolutions of the nets in `state`, in backbones, FPNs or detectors."""
    nets = prefixes_of("layer1.0.conv1.weight", state)
    found = [prefix + stem for prefix in nets for stem in STEMS if prefix + stem in state]
    if not found or any(state[name].ndim != 4 or state[name].shape[1] != 3 for name in found):
        raise UserError("Channels can only be swapped or folded if the first layer, conv1, takes three channels.")
    return found
