"""How gradients flow: the loss's gradient at every block's input, and its part through the shortcuts alone.

With identity shortcuts and nothing after the addition, x_L = x_l + sum of the residuals between them, so
dE/dx_l = dE/dx_L + dE/dx_L · d(sum)/dx_l (arXiv 1603.05027 equation 5): the first term, constant over a stage, reaches
every block of it undiminished.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..errors import UserError
from .blocks import Block, without_gradient


def block_gradients(blocks: list[Block], loss: Callable[[], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of `loss()` at the inputs and at the outputs of `blocks`, zeros where it does not depend on one.

    `loss` calls the model and returns a scalar.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for block in blocks:

            def before(_, args: tuple, name: str = block.name) -> None:
                if not args[0].requires_grad:  # behind frozen stages
                    args[0].requires_grad_()
                inputs.setdefault(name, args[0])

            def after(_, args: tuple, output: Tensor, name: str = block.name) -> None:
                outputs.setdefault(name, output)

            stack.callback(block.module.register_forward_pre_hook(before).remove)
            stack.callback(block.module.register_forward_hook(after).remove)
        value = loss()
        tensors = [of[block.name] for of in (inputs, outputs) for block in blocks]
        gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, gradients, strict=True)]
    return found[: len(blocks)], found[len(blocks) :]


def gradient_highways(blocks: list[Block], loss: Callable[[], Tensor]) -> list[dict]:
    """For each block the gradient at its input, for one batch; `loss()` must return the same value at every call.

    norm: the L2 norm of the gradient at the block's input.
    through_shortcuts: the norm of its part that passed no residual between the block and the loss,
    share: the contribution of this part to the gradient, its projection onto it divided by the square of `norm`.
    constant: the norm of the part that passed no residual of the block's own stage, the first term of equation 5,
    constant_error: its largest difference from the gradient at the end of the stage, relative to the largest value
        there. Zero up to rounding for identity shortcuts with nothing after the addition.

    The last four are None for blocks whose residual and shortcut cannot be separated. Raises `UserError` if the
    gradient is not finite.
    """
    total, _ = block_gradients(blocks, loss)
    if not all(torch.isfinite(g).all() for g in total):
        raise UserError("The gradients of the loss are not finite.")
    residual = [block for block in blocks if block.is_residual]
    with without_gradient(residual, "residual"):
        bare, _ = block_gradients(blocks, loss)
    constants: dict[str, tuple[Tensor, Tensor]] = {}
    for stage in dict.fromkeys(block.stage for block in residual):
        members = [block for block in residual if block.stage == stage]
        with without_gradient(members, "residual"):
            at_inputs, at_outputs = block_gradients(members, loss)
        constants |= {block.name: (g, at_outputs[-1]) for block, g in zip(members, at_inputs, strict=True)}
    rows = []
    for block, g, shortcuts in zip(blocks, total, bare, strict=True):
        row = {"block": block.name, "norm": float(g.norm()), "through_shortcuts": None, "share": None}
        row |= {"constant": None, "constant_error": None}
        if block.name in constants:
            constant, end = constants[block.name]
            row["through_shortcuts"] = float(shortcuts.norm())
            row["share"] = float((shortcuts * g).sum() / g.square().sum().clamp(min=1e-45))
            row["constant"] = float(constant.norm())
            if constant.shape == end.shape:
                row["constant_error"] = float((constant - end).abs().max() / end.abs().max().clamp(min=1e-45))
        rows.append(row)
    return rows


def mean_rows(batches: list[list[dict]]) -> list[dict]:
    """The mean of each block's numbers over batches; for `constant_error` the maximum."""
    return [
        {
            key: value
            if key == "block"
            else _mean([row[key] for row in rows], max if key == "constant_error" else None)
            for key, value in rows[0].items()
        }
        for rows in zip(*batches, strict=True)
    ]


def _mean(values: list[float | None], reduce: Callable | None) -> float | None:
    if None in values:
        return None
    return reduce(values) if reduce else sum(values) / len(values)


def training_mode(model: nn.Module) -> None:
    """Training mode for losses and norms, without dropout or stochastic depth."""
    model.train()
    for module in model.modules():
        if "Drop" in type(module).__name__ or type(module).__name__ == "StochasticDepth":
            module.eval()
