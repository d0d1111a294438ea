"""What torch's fused optimisers, one pass over weights, gradients and state, leave to whoever uses them."""

import torch
from torch.optim import Optimizer


def make_up_for_fusing(optimizer: Optimizer) -> Optimizer:
    """The fused SGD or AdamW `optimizer` with its gaps filled (as of torch 2.14).

    Its kernels do not count their writes, by which autograd and whatever is computed from a weight notice that it has
    changed. They go through state in the order of memory, as if it lay as its weight does, which that of a checkpoint
    need not. And where `found_inf` leaves out SGD's first step, its momenta stay uninitialised memory.
    """
    optimizer.register_step_post_hook(_count_writes)
    optimizer.register_load_state_dict_pre_hook(_stay_fused)
    optimizer.register_load_state_dict_post_hook(_lay_out)
    _lay_out(optimizer)
    return optimizer


def _count_writes(optimizer: Optimizer, *_) -> None:
    torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"]])


def _stay_fused(optimizer: Optimizer, state: dict) -> dict:
    """`state` with this run's choice of kernels; it brings that of the run which saved it."""
    kernels = {key: optimizer.defaults[key] for key in ("fused", "foreach")}
    return state | {"param_groups": [group | kernels for group in state["param_groups"]]}


def _lay_out(optimizer: Optimizer) -> None:
    """Give momenta that there are none of yet the 0 that they start from, and all state the strides of its weight."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p] if group.get("momentum") else optimizer.state.get(p, {})
            if group.get("momentum") and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
            for name, value in state.items():
                if value.shape == p.shape and value.stride() != p.stride():
                    state[name] = torch.empty_like(p, requires_grad=False).copy_(value)
