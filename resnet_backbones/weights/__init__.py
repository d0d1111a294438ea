"""Checkpoints: reading and writing them, and fitting them to models."""

from .loading import check_architecture, load_state_dict, load_weights
from .reading import Checkpoint, read_checkpoint
from .renaming import from_timm_preact
from .writing import save_safetensors

__all__ = [
    "Checkpoint",
    "check_architecture",
    "from_timm_preact",
    "load_state_dict",
    "load_weights",
    "read_checkpoint",
    "save_safetensors",
]
