"""Start a tool as several ranks on this machine, by torchrun's elastic agent."""

import os
import sys
import uuid

import torch

from ..errors import UserError
from ..training.preemption import INTERRUPTED, SIGNALS


def launch(num_ranks: int, max_restarts: int, argv: list[str]) -> int:
    """Run `argv`, a Python script and its arguments, on `num_ranks` ranks, one a GPU, or without any GPU on the CPU.

    Returns the exit status: of the rank that failed first, `INTERRUPTED` after a signal. Ranks that die are replaced
    together with all others up to `max_restarts` times. Raises `UserError` where there are fewer GPUs.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available() and num_ranks > torch.cuda.device_count():
        raise UserError(f"--num-gpus is {num_ranks}, but there are {torch.cuda.device_count()} GPUs.")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        signals_to_handle=",".join(["SIGINT", "SIGHUP", "SIGQUIT", *(number.name for number in SIGNALS)]),
    )
    try:
        elastic_launch(config, sys.executable)("-u", *argv)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stop:
        return INTERRUPTED if stop.sigval in SIGNALS else 128 + stop.sigval
    return 0
