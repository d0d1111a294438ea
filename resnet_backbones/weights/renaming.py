"""Other libraries' names of the same tensors."""

import re

from torch import Tensor


def from_timm_preact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's `resnetv2_*` in the names of our `preact_resnet*`; any other state_dict as it is.

    What timm calls the first norm of a stage closes the stage in front of it here (`preact.py`).
    """
    if "stages.0.blocks.0.norm1.weight" not in state:
        return state
    rules = [
        (r"^stem\.conv\.", "conv1."),
        (r"^stages\.0\.blocks\.0\.norm1\.", "bn1."),
        (r"^stages\.(\d)\.blocks\.0\.norm1\.", r"layer\1.bn."),
        (r"^stages\.(\d)\.blocks\.", lambda match: f"layer{int(match[1]) + 1}."),
        (r"^norm\.", "layer4.bn."),
        (r"\.norm(\d)\.", r".bn\1."),
        (r"\.downsample\.conv\.", ".downsample.0."),
        (r"^head\.fc\.", "fc."),
    ]

    def rename(name: str) -> str:
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        return name

    return {rename(name): tensor.flatten(1) if name == "head.fc.weight" else tensor for name, tensor in state.items()}
