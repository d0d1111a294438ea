"""What several processes share: rank, world size, reductions, gathering. Started by torchrun."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def init() -> torch.device:
    """Join the process group if torchrun started this process, and give the device to work on."""
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def shutdown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` whose gradients are averaged over ranks; itself where there is one rank."""
    if world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


def gather(value: Any) -> list[Any]:
    """The picklable `value` of every rank, in rank order, on the main rank; an empty list on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def broadcast(value: Any) -> Any:
    """The main rank's picklable `value`, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def mean(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Each scalar's mean over ranks."""
    stacked = torch.stack([v.detach().float() for v in values.values()])
    if world_size() > 1:
        dist.all_reduce(stacked)
    return dict(zip(values, (stacked / world_size()).tolist(), strict=True))


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks of a tensor on the CPU."""
    if world_size() == 1:
        return values
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    values = values.to(device)
    dist.all_reduce(values)
    return values.cpu()
