"""Read weights: safetensors files, torch files and pickles of arrays, local or from a URL."""

import json
import pickle
import re
import zipfile
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
from .pickles import ARRAY_GLOBALS, Inert, inert, read_pickle, refusal
from .published import timm_checkpoint, torchvision_checkpoint, without_eps

FORMAT = "resnet_backbones 1"  # marks the metadata of a safetensors file as ours
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # in front of names: DataParallel's and torch.compile's

# Numpy's arrays and scalars, and other plain data that trainers save beside the tensors.
PLAIN_GLOBALS = [
    *((value, name) for name, value in ARRAY_GLOBALS.items()),
    *{type(np.dtype(code)) for code in "?SU" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]},
    bytes,
]


def read_file(source: str) -> Checkpoint:
    """Every tensor in the file at `source` under its path, e.g. "model.conv1.weight" of {"model": {"conv1.weight": …}}.

    Args:
        source: a path or URL of a `.safetensors` file, a `.pkl` of numpy arrays or a torch file (any other suffix);
            the same on the Hugging Face Hub, `hf://OWNER/REPO[/FILE][@REVISION]`, where FILE is `model.safetensors`
            by default; `torchvision://NAME/WEIGHTS`; or `timm://NAME.TAG`.

    No code in the file is run. Raises `UserError` if there is no such file, and if it holds no tensors.
    """
    groups, metadata = _read(source)
    return Checkpoint({path + name: t for path, group in groups.items() for name, t in group.items()}, metadata)


def read_checkpoint(source: str) -> Checkpoint:
    """The largest dict of tensors in the file at `source`, the first of several, under the names used there.

    The prefixes of DataParallel and torch.compile are removed. Errors and `source` as in `read_file`.
    """
    groups, metadata = _read(source)
    state = max(groups.values(), key=len)
    if all(WRAPPERS.match(name) for name in state):
        state = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    return Checkpoint(state, metadata)


def _read(source: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The dicts of tensors in a file by their paths, and its metadata."""
    if source.startswith(("torchvision://", "timm://")):
        read = torchvision_checkpoint if source.startswith("torchvision://") else timm_checkpoint
        state, metadata = read(source)
        return {"": state}, metadata
    path = download(source) if source.startswith(PREFIX) else local_file(source, "weights file")
    is_pickle = path.suffix == ".pkl" and not zipfile.is_zipfile(path)  # a zip is what torch.save wrote
    if path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content = read_pickle(path) if is_pickle else read_torch(path)
        metadata = _metadata_beside(content)
    try:
        groups = _tensor_dicts(content, arrays=is_pickle, seen=set())
    except RecursionError as error:
        raise UserError(f"The weights file {source} is nested too deeply.") from error
    except UserError as error:
        raise UserError(f"The weights file {source}: {error}") from error
    if not groups:
        raise UserError(f"The weights file {source} holds no state_dict (a dict of names to tensors).")
    _check_metadata(metadata, source)
    return {path: without_eps(state, source) for path, state in groups.items()}, metadata


def _tensor_dicts(content: Any, arrays: bool, seen: set[int], path: str = "") -> dict[str, dict[str, Tensor]]:
    """The dicts of tensors nested anywhere in dicts and lists, by their paths such as "model.".

    Args:
        arrays: treat arrays as tensors, except optimizer momenta.
        seen: ids of the containers that were visited; a file can repeat them, or hold one in itself.
    """
    if not isinstance(content, (dict, list, tuple)) or id(content) in seen:
        return {}
    seen.add(id(content))
    items = content.items() if isinstance(content, dict) else enumerate(content)
    if isinstance(content, Inert) and "_modules" in content:
        items = _module_state(content).items()
    found, nested = {}, {}
    for key, value in items:
        if isinstance(value, Tensor):
            found[str(key)] = value
        elif arrays and isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            if not str(key).endswith("_momentum"):
                found[str(key)] = _tensor_of(value, key)
        else:
            nested |= _tensor_dicts(value, arrays, seen, f"{path}{key}.")
    return ({path: found} if found else {}) | nested


def _module_state(module: dict, prefix: str = "") -> dict[str, Tensor]:
    """The state_dict of an `nn.Module` that was pickled whole, from its attributes."""
    own = {**module.get("_parameters", {}), **module.get("_buffers", {})}
    state = {prefix + name: tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
    for name, child in module.get("_modules", {}).items():
        state |= _module_state(child, f"{prefix}{name}.") if isinstance(child, dict) else {}
    return state


def _tensor_of(array: np.ndarray, name: str) -> Tensor:
    try:
        return torch.tensor(array)
    except (TypeError, ValueError) as error:  # such as 128-bit floats
        raise UserError(f"{name} is not a tensor: {reason(error)}") from error


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`, on the CPU. Raises `UserError` as `read_checkpoint` does."""
    try:
        with torch.serialization.safe_globals([*PLAIN_GLOBALS, *_inert_globals(path)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise refusal(path, asked[1]) from error
        raise UserError(f"The weights file {path} is damaged or not a torch checkpoint.") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"The weights file {path} is damaged or not a torch checkpoint: {reason(error)}") from error


def _inert_globals(path: Path) -> list[tuple[type, str]]:
    """Stand-ins for the classes and functions in a torch file that are not known to be harmless."""
    with torch.serialization.safe_globals(PLAIN_GLOBALS):
        try:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # of the format before torch 1.6
            unknown = ["argparse.Namespace"]
    return [(inert(name, path), name) for name in unknown]


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
