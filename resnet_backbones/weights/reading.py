"""Read weights: safetensors files, torch files and pickles of arrays, local or from a URL."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError, reason
from ..paths import local_file
from .checkpoint import Checkpoint
from .hub import PREFIX, download
from .pickles import ARRAY_GLOBALS, read_pickle, refusal
from .published import timm_checkpoint, torchvision_checkpoint

FORMAT = "resnet_backbones 1"  # marks the metadata of a safetensors file as ours
NESTED_UNDER = ("model", "state_dict", "blobs")  # where files keep the state_dict, "blobs" those of Caffe2

# Numpy's arrays and scalars, which trainers often save beside the tensors.
NUMPY_GLOBALS = [
    *((value, name) for name, value in ARRAY_GLOBALS.items()),
    *{type(np.dtype(code)) for code in "?SU" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]},
    bytes,
]


def read_checkpoint(source: str) -> Checkpoint:
    """Read the weights at `source`, under the names that they have there.

    Args:
        source: a path or URL of a `.safetensors` file, a `.pkl` of numpy arrays or a torch file (any other suffix);
            the same on the Hugging Face Hub, `hf://OWNER/REPO[/FILE][@REVISION]`, where FILE is `model.safetensors`
            by default; `torchvision://NAME/WEIGHTS`; or `timm://NAME.TAG`.

    The state_dict may be nested under "model" or "state_dict", with "metadata" beside it. No code in the file is run.
    Raises `UserError` if there is no such file or it is not a checkpoint.
    """
    if source.startswith("torchvision://"):
        return torchvision_checkpoint(source)
    if source.startswith("timm://"):
        return timm_checkpoint(source)
    path = download(source) if source.startswith(PREFIX) else local_file(source, "weights file")
    readers = {".safetensors": _read_safetensors, ".pkl": _read_arrays}
    content, metadata = readers.get(path.suffix, _read_torch)(path)
    state = _unnested(content)
    names_to_tensors = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    )
    if not names_to_tensors or not state:
        raise UserError(f"The weights file {source} holds no state_dict (a dict of names to tensors).")
    _check_metadata(metadata, source)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel's prefix
    return Checkpoint(state, metadata)


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`, on the CPU. Raises `UserError` as `read_checkpoint` does."""
    try:
        with torch.serialization.safe_globals(NUMPY_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise refusal(path, asked[1]) from error
        raise UserError(f"The weights file {path} is damaged or not a torch checkpoint.") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"The weights file {path} is damaged or not a torch checkpoint: {reason(error)}") from error


def _read_torch(path: Path) -> tuple[Any, dict[str, Any]]:
    content = read_torch(path)
    return content, _metadata_beside(content)


def _read_arrays(path: Path) -> tuple[Any, dict[str, Any]]:
    """The numeric arrays of a pickle as tensors; optimizer momenta are skipped."""
    content = read_pickle(path)
    arrays = _unnested(content)
    if not isinstance(arrays, dict):
        return None, {}
    state = {}
    for name, array in arrays.items():
        if isinstance(array, np.ndarray) and array.dtype.kind in "biuf" and not str(name).endswith("_momentum"):
            try:
                state[name] = torch.tensor(array)
            except (TypeError, ValueError) as error:  # such as 128-bit floats
                raise UserError(f"The weights file {path}: {name} is not a tensor: {reason(error)}") from error
    return state, _metadata_beside(content)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        state = safetensors.torch.load_file(path)
    except Exception as error:
        raise UserError(f"The weights file {path} is damaged or not a safetensors file: {reason(error)}") from error
    if metadata.pop("format", None) != FORMAT:  # another program wrote it
        return state, {}
    try:
        return state, {key: json.loads(value) for key, value in metadata.items()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"The metadata of the weights file {path} is not JSON: {reason(error)}.") from error


def _unnested(content: Any) -> Any:
    for key in NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return content


def _metadata_beside(content: Any) -> dict[str, Any]:
    """Our "metadata", or detectron2's "__author__", beside the state_dict."""
    if not isinstance(content, dict):
        return {}
    metadata = content["metadata"] if isinstance(content.get("metadata"), dict) else {}
    return metadata | ({"author": content["__author__"]} if "__author__" in content else {})


def _check_metadata(metadata: dict[str, Any], source: str) -> None:
    """Raise `UserError` naming the entry that does not have the type or value that it needs."""
    where = f"The metadata of the weights file {source} is invalid"
    try:
        Checkpoint({}, metadata).preprocessing()
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {reason(error)}") from error
    architecture, classes = metadata.get("architecture", {}), metadata.get("classes")
    if (
        not isinstance(architecture, dict)
        or not isinstance(architecture.get("name", ""), str)
        or not isinstance(architecture.get("options", {}), dict)
    ):
        raise UserError(f"{where}: architecture is {architecture}; it must be a dict of a name and options.")
    is_list = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
    if classes is not None and not is_list:
        raise UserError(f"{where}: classes is {classes}; it must be a list of names.")
