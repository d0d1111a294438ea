#!/usr/bin/env python3
"""Kill a training run with SIGKILL again and again, resume it each time, and compare it with an uninterrupted one.

tests/kill_and_resume.py [--ranks 2] [--kills 20] [--seed 0] [--folder DIR]

Half of the kills hit the writing of a checkpoint, at a random fraction of the file; the others, a random moment. With
several ranks, every other kill hits a single rank, and torchrun has to exit by itself. Exits with 1 unless the weights,
the optimizer state and the logged losses are bit-identical.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from conftest import ROOT, TINY, coco_overrides, write_coco


def start(folder: Path, name: str, ranks: int, steps: int, *more: str) -> subprocess.Popen:
    settings = ["detector.name=faster_rcnn", "backbone.norm=GN", "evaluation.samples=0", "data.num_workers=1"]
    settings += ["solver.deterministic=true", f"solver.max_iter={steps}", "solver.steps=[8]"]
    settings += ["solver.checkpoint_period=1"]
    launch = ["--num-gpus", str(ranks), "--config", "quickstart_mask_rcnn.yaml", *TINY]
    launch += coco_overrides(folder / "data")
    with open(folder / f"{name}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "tools/train_net.py", *launch, *settings, *more, f"output_dir={folder / name}"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,  # so that all its processes can be killed together
        )


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def logged(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def wait_for(condition, process: subprocess.Popen, seconds: float = 120.0) -> bool:
    """Whether `condition` became true while the process was running."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def kill(process: subprocess.Popen, folder: Path, ranks: int, k: int, rng: random.Random) -> str:
    """Kill once; returns what was hit."""
    part, known = folder / ".part-last.pt", logged(folder)
    if not wait_for(lambda: logged(folder) > known, process):
        return "nothing: it had ended"
    if k % 2:
        size = (folder / "last.pt").stat().st_size if (folder / "last.pt").exists() else 10**7
        share = rng.random()
        hit = wait_for(lambda: part.exists() and part.stat().st_size >= share * size, process, 20)
        what = f"the checkpoint's write, at {share:.0%}" if hit else "nothing: it had ended"
    else:
        time.sleep(rng.random())
        what = "a random moment"
    alone = ranks > 1 and k % 4 > 1 and process.poll() is None
    if alone:
        os.kill(rng.choice(children(process.pid)), signal.SIGKILL)
        process.wait(timeout=60)
        what += ", one rank"
    for group in [process.pid, *(children(process.pid) if process.poll() is None else [])]:  # each rank has its own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    process.wait()
    return what


def differ(one: object, other: object) -> bool:
    """Whether two states of nested dicts, lists, tensors and numbers differ in any bit."""
    if isinstance(one, torch.Tensor):
        return not torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(differ(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) != len(other) or any(differ(a, b) for a, b in zip(one, other, strict=True))
    return one != other


def losses(folder: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def compare(folder: Path, ranks: int, kills: int, seed: int, steps: int = 60) -> bool:
    """Whether a run that is killed `kills` times ends in the same state as an uninterrupted one."""
    write_coco(folder / "data", 5)
    whole = start(folder, "whole", ranks, steps)
    if whole.wait():
        sys.exit((folder / "whole.log").read_text())
    rng = random.Random(seed)
    for k in range(kills):
        process = start(folder, "killed", ranks, steps, "--resume")
        print(f"kill {k + 1}: {kill(process, folder / 'killed', ranks, k, rng)}", flush=True)
    if start(folder, "killed", ranks, steps, "--resume").wait():
        sys.exit((folder / "killed.log").read_text()[-3000:])
    one, other = (torch.load(folder / name / "last.pt", weights_only=True) for name in ("whole", "killed"))
    return not differ(one, other) and losses(folder / "whole") == losses(folder / "killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the runs here; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        same = compare(args.folder or Path(temporary), args.ranks, args.kills, args.seed)
    print(f"{args.kills} kills, {args.ranks} ranks: {'the same to the last bit' if same else 'DIFFERENT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
