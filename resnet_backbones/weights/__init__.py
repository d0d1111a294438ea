"""Checkpoints: reading, writing and converting them, and fitting them to models."""

from .converting import FORMATS, from_ours, recognise, to_ours
from .loading import check_architecture, fit_weights, load_state_dict, load_weights, read_ours
from .reading import Checkpoint, read_checkpoint
from .writing import check_suffix, save_safetensors, write_checkpoint

__all__ = [
    "FORMATS",
    "Checkpoint",
    "check_architecture",
    "check_suffix",
    "fit_weights",
    "from_ours",
    "load_state_dict",
    "load_weights",
    "read_checkpoint",
    "read_ours",
    "recognise",
    "save_safetensors",
    "to_ours",
    "write_checkpoint",
]
