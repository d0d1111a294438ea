"""What several processes share: rank, world size, reductions, gathering. Started by torchrun, `launching` or Slurm."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

PIECE = 1000  # results gathered at a time, which bounds the memory that their transport takes
PR_SET_PDEATHSIG = 1  # of prctl(2)
PATIENCE = 45.0  # seconds that a rank which lost another waits for torchrun to end it


def init() -> torch.device:
    """Join the process group if torchrun started this process, and give the device to work on.

    Tensors on GPUs go by NCCL, those on the CPU by gloo, so that small agreements never wait for a GPU.
    """
    if launched() and not dist.is_initialized():
        _end_with_the_agent()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, rank_, size = next(dist.rendezvous("env://"))
        # Ranks that torchrun started anew would find the addresses of the lost ones in the store, which outlives them.
        store = dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank_, world_size=size)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def _end_with_the_agent() -> None:
    """Let the kernel end this rank if torchrun's agent is killed, lest it write beside the run that follows."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def shutdown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The rank on this machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def launched() -> bool:
    """Whether torchrun, `launching` or Slurm's submission started this process as one of several."""
    return "LOCAL_RANK" in os.environ


def restarted() -> bool:
    """Whether torchrun started these processes anew after it had lost some."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


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
    if world_size() > 1:
        dist.all_reduce(stacked)
    return dict(zip(values, (stacked / world_size()).tolist(), strict=True))


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks of a tensor, on its device; the host does not wait for a GPU."""
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
    """For means over `counts` things of this rank, scalars on their device, the factors that make their average over
    ranks the mean over all."""
    mine = torch.stack(list(counts))
    return (world_size() * mine.clamp(min=1) / total(mine).clamp(min=1)).unbind()


@contextmanager
def lost_ranks_first() -> Iterator[None]:
    """Let torchrun see a rank that died before those that only lost their connection to it.

    These wait here for torchrun to end them, so that what it reports is the first cause.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and ("Connection closed" in str(error) or "Connection reset" in str(error)):
            print(f"rank {rank()}: another rank is gone ({str(error).splitlines()[0][:120]})", flush=True)
            time.sleep(PATIENCE)
        raise
