"""Names of a wrapper's parameters in its state_dict: those of what it wraps, so that checkpoints fit both."""

from functools import partial

from torch import nn


def hide_child(module: nn.Module, child: str) -> None:
    """Leave `child.` out of the names of `module.state_dict()`, and accept them so.

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
