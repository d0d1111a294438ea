"""The blocks of a network in forward order, and what the studies do to them: remove, detach, reorder.

A block y = shortcut(x) + residual(x) (arXiv 1512.03385 equations 1 and 2) without its residual is its shortcut, which
is how arXiv 1605.06431 §4.1 deletes it. A block without a shortcut, or from another library, becomes the identity,
which needs input and output to have the same size.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.backbone import Backbone
from ..models.blocks import BasicBlock, Bottleneck
from ..models.deform import DeformConv2d
from ..models.fpn import FPN
from ..models.shortcuts import NoShortcut

LAYERS = (nn.Conv2d, DeformConv2d, nn.Linear)


class Block(NamedTuple):
    """A block of a network: `module` is `model.get_submodule(name)`, part of `stage`, such as "res3"."""

    name: str
    stage: str
    module: nn.Module

    @property
    def is_residual(self) -> bool:
        """Whether residual and shortcut can be separated, as in every residual block of this package."""
        return isinstance(self.module, (BasicBlock, Bottleneck)) and not isinstance(self.module.downsample, NoShortcut)


def find_body(model: nn.Module) -> tuple[str, nn.Module]:
    """The network with stages inside a backbone, classifier or detector, and its name there.

    Raises `UserError` if there is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, Backbone) and not isinstance(module, FPN):
            return name, module
    raise UserError("The model has no backbone of this package.")


def find_blocks(model: nn.Module) -> list[Block]:
    """The blocks of the backbone in `model`, in forward order.

    Raises `UserError` if it has no stages, or if they are single layers, as in VGG.
    """
    prefix, body = find_body(model)
    dot = f"{prefix}." if prefix else ""
    try:
        stages = body.stages
    except UserError:  # a timm network that cannot be split into stages
        raise UserError("This network cannot be split into stages, so it has no blocks.") from None
    blocks = [
        Block(dot + name, stage, module)
        for stage, parts in stages.items()
        if stage != "stem"
        for part in parts
        for name, module in _chain(part, body.get_submodule(part))
    ]
    if not blocks:
        raise UserError("This network has no blocks: its stages are single layers.")
    return blocks


def _chain(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a stage that consist of several layers; timm's stages hold them in `blocks`, or are sequences."""
    if isinstance(getattr(module, "blocks", None), nn.Sequential):
        name, module = f"{name}.blocks", module.blocks
    if isinstance(module, nn.Sequential) or type(module).__name__.endswith("Stage"):
        for child_name, child in module.named_children():
            yield from _chain(f"{name}.{child_name}", child)
    elif not isinstance(module, LAYERS) and sum(isinstance(part, LAYERS) for part in module.modules()) > 1:
        yield name, module


def block_shapes(blocks: list[Block], run: Callable[[], object]) -> dict[str, tuple[torch.Size, torch.Size]]:
    """The shapes of each block's input and output when `run()` calls the model."""
    shapes = {}
    with ExitStack() as stack:
        for block in blocks:

            def record(_, inputs: tuple, output: Tensor, name: str = block.name) -> None:
                shapes[name] = inputs[0].shape, output.shape

            stack.callback(block.module.register_forward_hook(record).remove)
        run()
    return shapes


class Zero(nn.Module):
    """In place of a residual: nothing is added to the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Detached(nn.Module):
    """The output of `module`, detached."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).detach()


class DetachedInput(nn.Module):
    """In place of an identity shortcut: the input of the block, detached.

    A pre-activation block calls its shortcut on the activated input, but its identity carries the raw input.
    """

    x: Tensor

    def keep(self, block: nn.Module, inputs: tuple) -> None:
        """The block's forward pre-hook."""
        self.x = inputs[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.x.detach()


@contextmanager
def replaced(parent: nn.Module, **children: nn.Module) -> Iterator[None]:
    """Replace the children of `parent` of these names."""
    before = {name: getattr(parent, name) for name in children}
    for name, child in children.items():
        setattr(parent, name, child)
    try:
        yield
    finally:
        for name, child in before.items():
            setattr(parent, name, child)


@contextmanager
def without(model: nn.Module, blocks: list[Block]) -> Iterator[None]:
    """Remove `blocks` from `model`: residual ones become their shortcuts, others the identity."""
    with ExitStack() as stack:
        for block in blocks:
            if block.is_residual:
                stack.enter_context(replaced(block.module, drop_path=Zero()))
            else:
                parent, _, child = block.name.rpartition(".")
                stack.enter_context(replaced(model.get_submodule(parent), **{child: nn.Identity()}))
        yield


@contextmanager
def without_gradient(blocks: list[Block], path: str) -> Iterator[None]:
    """Block the gradient through the "residual" or "shortcut" `path` of residual `blocks`; the forward pass stays."""
    with ExitStack() as stack:
        for module in (block.module for block in blocks):
            if path == "residual":
                stack.enter_context(replaced(module, drop_path=Detached(module.drop_path)))
            elif module.downsample is not None:
                stack.enter_context(replaced(module, downsample=Detached(module.downsample)))
            else:
                identity = DetachedInput()
                stack.callback(module.register_forward_pre_hook(identity.keep).remove)
                stack.enter_context(replaced(module, downsample=identity))
        yield


@contextmanager
def reordered(model: nn.Module, blocks: list[Block], order: list[int]) -> Iterator[None]:
    """Put `blocks[order[k]]` of `model` in the place of `blocks[k]`."""
    with ExitStack() as stack:
        for block, k in zip(blocks, order, strict=True):
            parent, _, child = block.name.rpartition(".")
            stack.enter_context(replaced(model.get_submodule(parent), **{child: blocks[k].module}))
        yield
