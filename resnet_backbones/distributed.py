"""Ranks: joining their process group, reductions and gathering, and draws that do not depend on the rank."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .errors import UserError

PIECE = 1000  # results gathered at a time, to limit the memory that this takes


def init() -> torch.device:
    """Join the process group if torchrun started this process, and return the device to work on.

    Tensors on GPUs are reduced by NCCL, those on the CPU by gloo, so that small ones never wait for a GPU.
    """
    if launched() and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, rank_, size = next(dist.rendezvous("env://"))
        # Without a prefix, ranks that torchrun restarts would find the addresses of the lost ones in the same store.
        store = dist.PrefixStore(f"restart_{restarts()}", store)
        dist.init_process_group(backend, store=store, rank=rank_, world_size=size)
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


def launched() -> bool:
    """Whether torchrun or Slurm started this process as one of several."""
    return "LOCAL_RANK" in os.environ


def restarts() -> int:
    """How often torchrun has restarted the ranks after losing some."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` in DistributedDataParallel; itself if there is one rank.

    Raises `UserError` for SyncBN on the CPU, where torch does not have it.
    """
    if world_size() == 1:
        return model
    if device.type == "cpu" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise UserError("backbone.norm=SyncBN needs GPUs where there are several ranks; on the CPU choose BN or GN.")
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


def gather(value: Any) -> list[Any]:
    """The picklable `value` of every rank, in rank order, on the main rank; an empty list on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def gather_results(results: list[Any]) -> list[Any]:
    """The picklable results of all ranks in one list on the main rank, piece by piece; empty on the others."""
    if world_size() == 1:
        return results
    longest = largest([len(results)])[0]
    pieces = [gather(results[k : k + PIECE]) for k in range(0, longest, PIECE)]
    return [result for piece in pieces for part in piece for result in part]


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
    return dict(zip(values, (total(stacked) / world_size()).tolist(), strict=True))


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks of a tensor, on its device."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def largest(values: Sequence[int]) -> list[int]:
    """Each number's maximum over ranks."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def shares(counts: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """For means over `counts` samples of this rank, scalars on their device, the weights whose average over ranks
    gives the mean over the samples of all ranks."""
    mine = torch.stack(list(counts))
    return (world_size() * mine.clamp(min=1) / total(mine).clamp(min=1)).unbind()


@contextmanager
def seeded(seed: int | None, stream: int = 0, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's draws on `device` with `seed` + `stream`; afterwards they continue from where they were.

    So what is drawn for an image depends on the image alone, whichever rank or worker has it. None changes nothing.
    """
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else [], enabled=seed is not None):
        if seed is not None:
            (torch.cuda if on_gpu else torch.default_generator).manual_seed(seed + stream)
        yield
