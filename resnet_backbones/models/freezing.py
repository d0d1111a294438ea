"""Freezing the first stages of a backbone, and taking off the last one."""

from torch import nn

from ..errors import UserError
from .backbone import Backbone
from .layers import FrozenBatchNorm2d


def freeze(module: nn.Module) -> nn.Module:
    """Stop all training of `module`: no gradients, and BN becomes FrozenBN so that no later `.train()` thaws it."""
    return FrozenBatchNorm2d.convert(module).requires_grad_(False)


def freeze_stages(backbone: Backbone, freeze_at: int) -> None:
    """Freeze the first `freeze_at` of `backbone.stages`: 0 nothing, 1 the stem, 2 stem and res2, … 5 everything."""
    if freeze_at not in range(6):
        raise UserError(f"freeze_at is {freeze_at}; it must be 0 (nothing), 1 (stem), 2 (stem and res2) … 5 (all).")
    for names in list(backbone.stages.values())[:freeze_at]:
        for name in names:
            backbone.set_submodule(name, freeze(backbone.get_submodule(name)))


def split_last_stage(backbone: Backbone) -> nn.Module:
    """Take the last of `backbone.stages` out of it: the backbone ends a stage earlier, the stage is returned."""
    feature, names = backbone.stages.popitem()
    backbone.out_features.pop(feature)
    modules = []
    for name in names:
        parent, _, child = name.rpartition(".")
        modules.append(backbone.get_submodule(name))
        delattr(backbone.get_submodule(parent), child)
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
