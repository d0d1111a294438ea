"""timm's names of pre-activation nets, `resnetv2_*`, which are ours under `preact_resnet*`.

What timm calls the first norm of a stage closes the stage in front of it here (`preact.py`).
"""

import re

from torch import Tensor

from ..errors import UserError

# timm's names, ours, and each as a pattern; {n} is a stage, {n+1} the same counted from 1.
RULES = [
    (r"^stem\.conv\.", "conv1.", r"^conv1\.", "stem.conv."),
    (r"^stages\.0\.blocks\.0\.norm1\.", "bn1.", r"^bn1\.", "stages.0.blocks.0.norm1."),
    (r"^stages\.(\d)\.blocks\.0\.norm1\.", r"layer\1.bn.", r"^layer([1-3])\.bn\.", r"stages.\1.blocks.0.norm1."),
    (r"^norm\.", "layer4.bn.", r"^layer4\.bn\.", "norm."),
    (r"^stages\.(\d)\.blocks\.", lambda m: f"layer{int(m[1]) + 1}.", r"^layer(\d)\.(?=\d)",
     lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"\.norm(\d)\.", r".bn\1.", r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.conv\.", ".downsample.0.", r"\.downsample\.0\.", ".downsample.conv."),
    (r"^head\.fc\.", "fc.", r"^fc\.", "head.fc."),
]  # fmt: skip


def from_timm_preact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's `resnetv2_*` in our names; any other state_dict as it is."""
    if "stages.0.blocks.0.norm1.weight" not in state:
        return state
    _check_bottlenecks("stages.0.blocks.0.conv3.weight" in state)
    renamed = {_apply([(pattern, ours) for pattern, ours, _, _ in RULES], name): t for name, t in state.items()}
    return {name: t.flatten(1) if name == "fc.weight" else t for name, t in renamed.items()}  # timm's is 1x1


def to_timm_preact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our pre-activation nets in timm's names; any other state_dict, which has timm's names already, as it is."""
    if "layer1.bn.weight" not in state:
        return state
    _check_bottlenecks("layer1.0.conv3.weight" in state)
    renamed = {_apply([(pattern, timms) for _, _, pattern, timms in RULES], name): t for name, t in state.items()}
    return {name: t[:, :, None, None] if name == "head.fc.weight" else t for name, t in renamed.items()}


def _check_bottlenecks(bottlenecks: bool) -> None:
    """Raise `UserError` for nets of basic blocks, whose tensors look alike but mean something else."""
    if not bottlenecks:
        raise UserError(
            "timm's resnetv2_18 and 34 do not activate the first unit's shortcut, as preact_resnet18 and 34 do: their "
            "weights cannot be exchanged."
        )


def _apply(rules: list[tuple], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
