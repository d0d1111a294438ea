"""Reading checkpoints and fitting them to models."""

from .loading import load_state_dict, load_weights
from .reading import read_state_dict

__all__ = ["load_state_dict", "load_weights", "read_state_dict"]
