"""Names of parameters in a state_dict: a wrapper uses those of what it wraps, and older ones are brought up to date."""

import re
from functools import partial

from torch import nn

# Names in torchvision's detectors before 0.13 and now, each with a name that occurs beside the old one only in other
# detectors: detectron2's mask head, and the norms behind the convolutions in FCOS.
BEFORE_0_13 = [
    (r"\b(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"\1_blocks.\2.0.\3", None),
    (r"\brpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", None),
    (
        r"\bmask_head\.mask_fcn(\d+)\.(weight|bias)$",
        lambda m: f"mask_head.{int(m[1]) - 1}.0.{m[2]}",
        "mask_head.deconv.weight",
    ),
    (
        r"\b(classification|regression)_head\.conv\.([0246])\.(weight|bias)$",
        lambda m: f"{m[1]}_head.conv.{int(m[2]) // 2}.0.{m[3]}",
        "_head.conv.1.weight",
    ),
]


def named_as_now(state: dict) -> dict:
    """`state` with the names that torchvision's detectors have had since 0.13; others are unchanged."""
    rules = [
        (pattern, replacement)
        for pattern, replacement, elsewhere in BEFORE_0_13
        if elsewhere is None or not any(elsewhere in name for name in state)
    ]
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def hide_child(module: nn.Module, child: str) -> None:
    """Leave `child.` out of the names of `module.state_dict()`, and load names without it.

    `named_parameters()` keeps it. Names of the other children must differ from those within `child`; they come last.
    """
    module.register_state_dict_post_hook(partial(_hide, child))
    module.register_load_state_dict_pre_hook(partial(_reveal, child))


def _hide(child: str, module: nn.Module, state: dict, prefix: str, *_) -> None:
    inner = f"{prefix}{child}."
    for name in [name for name in state if name.startswith(inner)]:
        state[prefix + name.removeprefix(inner)] = state.pop(name)
    for other in _others(child, module):
        for name in [name for name in state if name.startswith(f"{prefix}{other}.")]:
            state[name] = state.pop(name)


def _reveal(child: str, module: nn.Module, state: dict, prefix: str, *_) -> None:
    apart = tuple(f"{prefix}{other}." for other in _others(child, module))
    for name in [name for name in state if name.startswith(prefix) and not name.startswith(apart)]:
        state[f"{prefix}{child}.{name.removeprefix(prefix)}"] = state.pop(name)


def _others(child: str, module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children() if name != child]
