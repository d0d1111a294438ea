"""Where weights come from: safetensors and torch files, local or by URL, and what torchvision and timm publish."""

import json
import pickle
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import safetensors.torch
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import UserError, reason, unknown
from ..optional import import_timm
from ..paths import local_file
from ..preprocessing import Preprocessing
from .pickles import read_pickle
from .torch_files import read_torch

FORMAT = "resnet_backbones 1"  # says that the metadata of a safetensors file is ours
LONGEST, DEEPEST = 8, 1000  # of an option: entries of a list, and blocks of a stage


class Checkpoint(NamedTuple):
    """A state_dict and what is known of it: "architecture", "preprocessing", "classes", … (see `writing.py`)."""

    state: dict[str, Tensor]
    metadata: dict[str, Any]

    def preprocessing(self) -> Preprocessing | None:
        """What the weights take as their input, where that is known."""
        known = self.metadata.get("preprocessing")
        return None if known is None else Preprocessing(**known)


def read_checkpoint(source: str) -> Checkpoint:
    """The weights at `source`: a `.safetensors` or torch file, an URL of one, `torchvision://NAME/WEIGHTS` or
    `timm://NAME.TAG`, the last two with their libraries' preprocessing and class names.

    Torch files are read without running what is in them and may hold the state_dict under "model" or "state_dict", and
    beside it "metadata". Raises `UserError` where there is no such file or it is no checkpoint.
    """
    if source.startswith("torchvision://"):
        return _torchvision_checkpoint(source)
    if source.startswith("timm://"):
        return _timm_checkpoint(source)
    path = local_file(source, "weights file")
    readers = {".safetensors": _read_safetensors, ".pkl": _read_pickle}
    state, metadata = readers.get(path.suffix, _read_torch)(path)
    for key in ("model", "state_dict", "blobs"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise UserError(f"The weights file {source} holds no state_dict (a mapping of names to tensors).")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel's prefix
    _check_metadata(metadata, source)
    return Checkpoint(state, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        state = safetensors.torch.load_file(path)
    except Exception as error:
        raise UserError(f"The weights file {path} is not a whole safetensors file: {error}") from error
    if metadata.pop("format", None) != FORMAT:  # another program's: "pt", say
        return state, {}
    try:
        return state, {key: json.loads(value) for key, value in metadata.items()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"The metadata of the weights file {path} is damaged: {error}.") from error


def _check_metadata(metadata: dict[str, Any], source: str) -> None:
    """Raise `UserError` where what a file says of itself cannot be used."""
    try:
        Checkpoint({}, metadata).preprocessing()
        architecture = metadata.get("architecture", {})
        if not isinstance(architecture.get("name", ""), str) or not isinstance(architecture.get("options", {}), dict):
            raise ValueError(f"architecture is {architecture}")
        for option, value in architecture.get("options", {}).items():
            if not isinstance(option, str) or not _is_plain(value):
                raise ValueError(f"architecture.options.{str(option)[:80]} is {str(value)[:80]}")
        if not all(isinstance(name, str) for name in metadata.get("classes") or []):
            raise ValueError("its classes are no names")
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"The metadata of the weights file {source} is damaged: {reason(error)}") from error


def _is_plain(value: Any) -> bool:
    """Whether it is what a YAML would give for an option: a word, a number, or a few of them."""
    if isinstance(value, (list, tuple)):
        few = len(value) <= LONGEST
        return few and all(isinstance(v, str) or (isinstance(v, int) and abs(v) <= DEEPEST) for v in value)
    return value is None or isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 2**31)


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`; `torch_files.py` says what is refused. Raises `UserError` naming the file."""
    try:
        return read_torch(path)
    except pickle.UnpicklingError as error:
        asked = re.search(r"asks for (\S+)", str(error))
        raise UserError(
            f"The weights file {path} is not a torch checkpoint, or asks to run code"
            f"{f', {asked[1]},' if asked else ','} which is refused; save it as a plain state_dict."
        ) from error
    except Exception as error:  # whatever a damaged file makes zipfile, pickle or torch stumble over
        raise UserError(f"The weights file {path} is damaged: {reason(error)}") from error


def _read_torch(path: Path) -> tuple[Any, dict[str, Any]]:
    content = load_torch(path)
    return content, _told(content)


def _read_pickle(path: Path) -> tuple[Any, dict[str, Any]]:
    """numpy's arrays as tensors; what else lies among them, and optimisers' momenta, left out."""
    content = read_pickle(path.read_bytes(), str(path))
    weights = next((content[k] for k in ("model", "blobs") if isinstance(content, dict) and k in content), content)
    if not isinstance(weights, dict):
        return None, {}
    arrays = {
        k: np.asarray(v) for k, v in weights.items() if isinstance(v, np.ndarray) and not str(k).endswith("_momentum")
    }
    try:
        native = {k: v.astype(v.dtype.newbyteorder("=")) for k, v in arrays.items() if v.dtype.kind in "fiub"}
        return {k: torch.from_numpy(v) for k, v in native.items()}, _told(content)
    except TypeError as error:  # numbers that torch does not have, of 128 bits
        raise UserError(f"The weights file {path} holds arrays that are no tensors: {reason(error)}") from error


def _told(content: Any) -> dict[str, Any]:
    """What a file of ours, or detectron2's "__author__", says of the weights in it."""
    if not isinstance(content, dict):
        return {}
    metadata = content["metadata"] if isinstance(content.get("metadata"), dict) else {}
    return metadata | ({"author": content["__author__"]} if "__author__" in content else {})


def _torchvision_checkpoint(source: str) -> Checkpoint:
    name, _, weights_name = source.removeprefix("torchvision://").partition("/")
    if name not in torchvision.models.list_models():
        raise UserError(f"{source}: " + unknown("torchvision model", name, torchvision.models.list_models()))
    published = torchvision.models.get_model_weights(name)
    if weights_name not in published.__members__:
        raise UserError(f"{source}: " + unknown(f"weights of {name}", weights_name, published.__members__))
    weights = published[weights_name]
    metadata = {"preprocessing": asdict(_torchvision_preprocessing(weights.transforms()))}
    if weights.meta.get("categories") and name in torchvision.models.list_models(module=torchvision.models):
        metadata |= {"architecture": {"name": name}, "classes": weights.meta["categories"]}
    try:
        return Checkpoint(weights.get_state_dict(progress=False, check_hash=True), metadata)
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"{source} could not be fetched from {weights.url} ({error}); download it by hand into {folder}."
        ) from error


def _torchvision_preprocessing(transforms: nn.Module) -> Preprocessing:
    if not hasattr(transforms, "crop_size"):  # of a detector, which resizes and normalises by itself
        return Preprocessing()
    return Preprocessing(
        tuple(transforms.mean),
        tuple(transforms.std),
        resize=transforms.resize_size[0],
        size=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
    )


def _timm_checkpoint(source: str) -> Checkpoint:
    timm = import_timm()
    name = source.removeprefix("timm://")
    if name not in timm.list_pretrained():
        raise UserError(f"{source}: " + unknown("timm weights", name, timm.list_pretrained(f"{name.split('.')[0]}*")))
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # of whichever library timm downloads with
        raise UserError(f"{source} could not be fetched: {reason(error)}") from error
    given = timm.data.resolve_model_data_config(model)
    size = given["input_size"][-1]
    preprocessing = Preprocessing(
        given["mean"],
        given["std"],
        resize=int(size / given["crop_pct"]),
        size=size,
        interpolation=given["interpolation"],
    )
    return Checkpoint(model.state_dict(), {"preprocessing": asdict(preprocessing)})
