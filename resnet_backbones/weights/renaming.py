"""Rename timm's pre-activation nets, `resnetv2_*`, to ours, `preact_resnet*`, and back; and transformers' ResNets.

The first norm of a stage in timm is the last norm of the stage before it here (`models/preact.py`). timm and
transformers count stages and blocks from 0, we count stages from 1.
"""

import re
from collections.abc import Callable

from torch import Tensor

from ..errors import UserError

# Patterns and their replacements, applied to a name one after the other.
FROM_TIMM = [
    (r"^stem\.conv\.", "conv1."),
    (r"^stages\.0\.blocks\.0\.norm1\.", "bn1."),
    (r"^stages\.(\d)\.blocks\.0\.norm1\.", r"layer\1.bn."),
    (r"^norm\.", "layer4.bn."),
    (r"^stages\.(\d)\.blocks\.", lambda match: f"layer{int(match[1]) + 1}."),
    (r"\.norm(\d)\.", r".bn\1."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"^head\.fc\.", "fc."),
]
TO_TIMM = [
    (r"^conv1\.", "stem.conv."),
    (r"^bn1\.", "stages.0.blocks.0.norm1."),
    (r"^layer([1-3])\.bn\.", r"stages.\1.blocks.0.norm1."),
    (r"^layer4\.bn\.", "norm."),
    (r"^layer(\d)\.(?=\d)", lambda match: f"stages.{int(match[1]) - 1}.blocks."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.0\.", ".downsample.conv."),
    (r"^fc\.", "head.fc."),
]

FROM_TRANSFORMERS = [
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d)\.layers\.", lambda match: f"layer{int(match[1]) + 1}."),
    (r"\.layer\.(\d)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
]
# A name that every net of the library has, by which it is known.
TIMM_PREACT, TRANSFORMERS = "stages.0.blocks.0.norm1.weight", "embedder.embedder.convolution.weight"


def from_timm_preact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's `resnetv2_*` in `state`, each behind its own prefix, to our names."""
    for prefix in prefixes_of(TIMM_PREACT, state):
        _check_bottlenecks(f"{prefix}stages.0.blocks.0.conv3.weight" in state)
        state = _renamed_below(prefix, FROM_TIMM, state)
        last = f"{prefix}fc.weight"
        state |= {last: state[last].flatten(1)} if last in state else {}
    return state


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' ResNets in `state`, each behind its own prefix, to our names."""
    for prefix in prefixes_of(TRANSFORMERS, state):
        state = _renamed_below(prefix, FROM_TRANSFORMERS, state)
    return state


def prefixes_of(name: str, state: dict[str, Tensor]) -> list[str]:
    """The prefixes of `name` in `state`: "" or, for example, "module."."""
    return [key.removesuffix(name) for key in state if key == name or key.endswith(f".{name}")]


def to_timm_preact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our pre-activation nets to timm's names; any other state_dict is returned unchanged."""
    if "layer1.bn.weight" not in state:
        return state
    _check_bottlenecks("layer1.0.conv3.weight" in state)
    renamed = {_apply(TO_TIMM, name): tensor for name, tensor in state.items()}
    # timm's last layer is a 1x1 convolution.
    return {name: tensor[:, :, None, None] if name == "head.fc.weight" else tensor for name, tensor in renamed.items()}


def _check_bottlenecks(bottlenecks: bool) -> None:
    """Raise `UserError` for nets of basic blocks: their tensors have the same shapes but compute something else."""
    if not bottlenecks:
        raise UserError(
            "timm's resnetv2_18 and 34 do not activate the first block's shortcut as preact_resnet18 and 34 do; their "
            "weights cannot be converted."
        )


def _renamed_below(prefix: str, rules: list[tuple[str, str | Callable]], state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        prefix + _apply(rules, name.removeprefix(prefix)) if name.startswith(prefix) else name: tensor
        for name, tensor in state.items()
    }


def _apply(rules: list[tuple[str, str | Callable]], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
