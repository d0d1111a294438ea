"""`model.safetensors`: weights that say what they are and what they take."""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError, reason
from .pickles import write_pickle
from .reading import FORMAT, Checkpoint

LIBRARIES = ("resnet_backbones", "torch", "torchvision", "timm")


def save_safetensors(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a state_dict and what is known of it, whole or not at all.

    Args:
        metadata: values that JSON can hold. A classifier's are "architecture" (`name` and `options` of
            `build_backbone`), "features" (channels and stride of each), "preprocessing" (the fields of
            `Preprocessing`), "classes" (names in the order of the logits), "recipe" (the config) and "metrics" (in
            percent). The versions of the libraries are added.

    Raises `UserError` where it cannot be written.
    """
    metadata = metadata | {"versions": _versions()}
    try:
        text = {"format": FORMAT} | {key: json.dumps(value) for key, value in metadata.items()}
    except (TypeError, ValueError, RecursionError) as error:  # of a torch file or pickle, which hold anything
        raise UserError(f"The metadata for {path} cannot be written as JSON: {reason(error)}.") from error
    temporary = path.with_name(f".{path.name}.part")
    try:
        safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, temporary, text)
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"The weights file {path} cannot be written: {error}.") from error


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `.safetensors`, `.pth` (a state_dict under "model", the metadata beside it) or `.pkl` (the same in numpy).

    detectron2 reads the last two as they are. Raises `UserError` for another suffix and where it cannot be written.
    """
    check_suffix(path)
    if path.suffix == ".safetensors":
        return save_safetensors(path, checkpoint.state, checkpoint.metadata)
    more = {"metadata": checkpoint.metadata, "__author__": "resnet_backbones"}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state.items()}
    try:
        if path.suffix == ".pth":
            torch.save({"model": state, **more}, path)
        else:
            arrays = {k: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for k, t in state.items()}
            path.write_bytes(write_pickle(arrays, more))
    except (OSError, RuntimeError) as error:
        raise UserError(f"The weights file {path} cannot be written: {error}.") from error
    return None


def check_suffix(path: Path) -> None:
    """Raise `UserError` where `write_checkpoint` does not know the suffix of `path`."""
    if path.suffix not in (".safetensors", ".pth", ".pkl"):
        raise UserError(f"{path} has no known suffix; choose .safetensors, .pth or .pkl.")


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
