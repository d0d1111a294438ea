"""Where weights come from: safetensors and torch files, local or by URL, and torchvision's published ones."""

import pickle
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from ..errors import UserError, reason, unknown
from ..extractors.timm import import_timm
from ..paths import local_file


def read_state_dict(source: str) -> dict[str, Tensor]:
    """The state_dict at `source`: a `.safetensors` or torch file, an URL of one, `torchvision://NAME/WEIGHTS` or
    `timm://NAME.TAG`.

    Torch files are read with `weights_only` and may hold the state_dict under "model" or "state_dict".
    Raises `UserError` where there is no such file or it is no checkpoint.
    """
    if source.startswith("torchvision://"):
        return _torchvision_state_dict(source)
    if source.startswith("timm://"):
        return _timm_state_dict(source)
    path = local_file(source, "weights file")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise UserError(f"The weights file {source} holds no state_dict (a mapping of names to tensors).")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel's prefix


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise UserError(f"The weights file {path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError) as error:  # KeyError: text taken for pickle's op codes
        raise UserError(
            f"The weights file {path} is not a torch checkpoint, or asks to run code, which is refused; "
            "save it as a plain state_dict."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"The weights file {path} is damaged: {reason(error)}") from error


def _torchvision_state_dict(source: str) -> dict[str, Tensor]:
    name, _, weights_name = source.removeprefix("torchvision://").partition("/")
    if name not in torchvision.models.list_models():
        raise UserError(f"{source}: " + unknown("torchvision model", name, torchvision.models.list_models()))
    published = torchvision.models.get_model_weights(name)
    if weights_name not in published.__members__:
        raise UserError(f"{source}: " + unknown(f"weights of {name}", weights_name, published.__members__))
    weights = published[weights_name]
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"{source} could not be fetched from {weights.url} ({error}); download it by hand into {folder}."
        ) from error


def _timm_state_dict(source: str) -> dict[str, Tensor]:
    timm = import_timm()
    name = source.removeprefix("timm://")
    if name not in timm.list_pretrained():
        raise UserError(f"{source}: " + unknown("timm weights", name, timm.list_pretrained(f"{name.split('.')[0]}*")))
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of whichever library timm downloads with
        raise UserError(f"{source} could not be fetched: {reason(error)}") from error
