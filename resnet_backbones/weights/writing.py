"""`model.safetensors`: weights that say what they are and what they take."""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ..errors import UserError
from .reading import FORMAT

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
    text = {"format": FORMAT} | {key: json.dumps(value) for key, value in metadata.items()}
    temporary = path.with_name(f".{path.name}.part")
    try:
        safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, temporary, text)
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"The weights file {path} cannot be written: {error}.") from error


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
