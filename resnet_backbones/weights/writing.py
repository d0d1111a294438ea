"""Write weights: `.safetensors`, `.pth` or `.pkl`, to a file or the Hub, with the metadata that our readers know."""

import json
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import UserError, reason
from ..models.backbone import Backbone
from ..models.classifier import Classifier
from ..models.fuse import FusedNorm
from ..paths import atomic_write
from .checkpoint import Checkpoint
from .converting import detect_format
from .hub import DEFAULT_FILE, HubFile, parse, upload
from .reading import FORMAT, read_checkpoint

SUFFIXES = (".safetensors", ".pth", ".pkl")


def save_safetensors(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a state_dict and its metadata; an interrupted write leaves the old file as it was.

    Args:
        metadata: JSON-serializable values. A classifier's are "architecture" (`name` and `options` of
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


def push_to_hub(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    filename: str = DEFAULT_FILE,
    revision: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload weights to the Hugging Face Hub; the repository and the branch are created if they do not exist.

    Args:
        model: a classifier or a backbone, or the source of a checkpoint, such as `model.safetensors` or `best.pt`.
        repo_id: "OWNER/REPO".
        filename: in the repository; its suffix decides the format as in `write_checkpoint`.
        revision: the branch; None for main.
        private: whether a new repository is private; None for its owner's default.

    Returns the source `hf://OWNER/REPO/FILE@COMMIT` that loads them again. The token is that of `hf auth login`.
    Raises `UserError` for what cannot be loaded again, without huggingface_hub, without a token that may write there,
    and if the Hub cannot be reached.
    """
    target = HubFile(repo_id, filename, revision)
    if parse(str(target)) != target:
        raise UserError(f"{target} is malformed: repo_id is OWNER/REPO, and neither it nor the filename may have an @.")
    is_source = isinstance(model, (str, Path))
    checkpoint = read_checkpoint(str(model)) if is_source else Checkpoint(model.state_dict(), metadata_of(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(filename).name
        write_checkpoint(path, checkpoint)
        return upload(path, target, private, commit_message)


def metadata_of(model: nn.Module) -> dict[str, Any]:
    """What a classifier or backbone knows of the metadata of `save_safetensors`.

    Raises `UserError` for any other module and for a fused one, whose weights no unfused network can load.
    """
    backbone = model.backbone if isinstance(model, Classifier) else model
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"A {type(model).__name__} is not a classifier or backbone; save its state_dict and give the file."
        )
    if any(isinstance(module, FusedNorm) for module in model.modules()):
        raise UserError("A fused model cannot be loaded again; give the one that it was made from.")
    preprocessing = getattr(model, "preprocessing", None) or getattr(backbone, "preprocessing", None)
    known = {
        "architecture": getattr(backbone, "architecture", None),
        "features": {name: shape._asdict() for name, shape in backbone.shapes.items()},
        "preprocessing": preprocessing and asdict(preprocessing),
        "classes": getattr(model, "classes", None),
    }
    return {key: value for key, value in known.items() if value is not None}


def check_output(path: Path) -> None:
    """Raise `UserError` if `path` has a suffix that `write_checkpoint` does not know, or no folder."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} has no known suffix; choose .safetensors, .pth or .pkl.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist; create it.")


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
