"""What a weights file holds: a state_dict, and what the file says about it."""

from typing import Any, NamedTuple

from torch import Tensor

from ..preprocessing import Preprocessing


class Checkpoint(NamedTuple):
    """A state_dict and its metadata: "architecture", "preprocessing", "classes", … (see `save_safetensors`)."""

    state: dict[str, Tensor]
    metadata: dict[str, Any]

    def preprocessing(self) -> Preprocessing | None:
        """The input that the weights were trained on; None if the file does not say."""
        known = self.metadata.get("preprocessing")
        return None if known is None else Preprocessing(**known)
