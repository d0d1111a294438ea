"""Peak memory: of tensors, as the allocator counts them, and of a whole process."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs its start and end otherwise


def tensor_peak(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that a call holds at one time, above those that were there before.

    On the CPU it comes from the profiler's record of every allocation. It is exact, but excludes fragmentation and
    what a library allocates outside torch, which `process_peak` includes.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())["traceEvents"]
    changes = [event["args"] for event in sorted(trace, key=lambda e: e.get("ts", 0)) if event["name"] == "[memory]"]
    if not changes:
        return 0
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return max(change["Total Allocated"] for change in changes) - before


def process_peak(build: Callable[..., Callable[[], object]], *args) -> int | None:
    """The most resident bytes of a process in three calls of `build(*args)`, above those before the first.

    A process of its own, so that nothing is left over from others. None on systems other than Linux.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_growth, build, args).result()


def _growth(build: Callable[..., Callable[[], object]], args: tuple) -> int | None:
    run = build(*args)
    before = _status("VmRSS")
    for _ in range(3):
        run()
    # Not getrusage's value, which a process inherits from the one that started it.
    peak = _status("VmHWM")
    return None if before is None or peak is None else peak - before


def _status(key: str) -> int | None:
    path = Path("/proc/self/status")
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines()) if path.exists() else {}
    return int(rows[key].split()[0]) * 1024 if key in rows else None
