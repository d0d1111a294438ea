"""Write weights: `.safetensors`, `.pth` or `.pkl`, with the metadata that our readers understand."""

import json
import pickle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError, reason
from ..paths import atomic_write
from .checkpoint import Checkpoint
from .converting import detect_format
from .reading import FORMAT

SUFFIXES = (".safetensors", ".pth", ".pkl")


def save_safetensors(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a state_dict and its metadata; an interrupted write leaves the old file as it was.

    Args:
        metadata: values that JSON can hold. A classifier's are "architecture" (`name` and `options` of
            `build_backbone`), "features" (channels and stride of each), "preprocessing" (the fields of
            `Preprocessing`), "classes" (names in the order of the logits), "recipe" (the config) and "metrics" (in
            percent).

    Raises `UserError` if it cannot be written.
    """
    try:
        text = {"format": FORMAT} | {key: json.dumps(value) for key, value in metadata.items()}
    except (TypeError, ValueError) as error:  # the metadata of a torch file or pickle can be anything
        raise UserError(f"The metadata for {path} cannot be written as JSON: {reason(error)}.") from error
    try:
        with atomic_write(path) as temporary:
            safetensors.torch.save_file(_on_cpu(state), temporary, text)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"The weights file {path} cannot be written: {reason(error)}.") from error


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as the suffix of `path` says; an interrupted write leaves the old file as it was.

    A `.pth` holds the state_dict under "model" and the metadata beside it, a `.pkl` the same with numpy arrays;
    detectron2 loads both. Raises `UserError` for an unknown suffix and if it cannot be written.
    """
    check_output(path)
    if path.suffix == ".safetensors":
        save_safetensors(path, checkpoint.state, checkpoint.metadata)
        return
    beside = {"metadata": checkpoint.metadata, "__author__": "resnet_backbones"}
    if detect_format(checkpoint.state) == "caffe2":
        beside |= {"__author__": "Caffe2", "matching_heuristics": True}  # detectron2 then renames the tensors
    state = _on_cpu(checkpoint.state)
    try:
        with atomic_write(path) as temporary:
            if path.suffix == ".pth":
                torch.save({"model": state, **beside}, temporary)
            else:
                arrays = {k: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for k, t in state.items()}
                temporary.write_bytes(pickle.dumps({"model": arrays, **beside}, protocol=2))  # as detectron2 reads
    except (OSError, RuntimeError) as error:
        raise UserError(f"The weights file {path} cannot be written: {reason(error)}.") from error


def check_output(path: Path) -> None:
    """Raise `UserError` if `path` has a suffix that `write_checkpoint` does not know, or no folder."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} has no known suffix; choose .safetensors, .pth or .pkl.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist; create it.")


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
