"""Checkpoints: read, rename, convert and write them, and load them into models."""

from .checkpoint import Checkpoint
from .converting import FORMATS, detect_format, from_ours, to_ours
from .loading import (
    check_architecture,
    fit,
    fit_p6,
    fit_weights,
    load_state_dict,
    load_weights,
    read_ours,
)
from .matching import below, find_prefix, last_layer, shapes_of
from .reading import read_checkpoint, read_file
from .writing import check_output, metadata_of, push_to_hub, save_safetensors, write_checkpoint

__all__ = [
    "FORMATS",
    "Checkpoint",
    "below",
    "check_architecture",
    "check_output",
    "detect_format",
    "find_prefix",
    "fit",
    "fit_p6",
    "fit_weights",
    "from_ours",
    "last_layer",
    "load_state_dict",
    "load_weights",
    "metadata_of",
    "push_to_hub",
    "read_checkpoint",
    "read_file",
    "read_ours",
    "save_safetensors",
    "shapes_of",
    "to_ours",
    "write_checkpoint",
]
