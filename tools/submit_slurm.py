#!/usr/bin/env python3
"""Submit a training tool to Slurm, on one or several machines, through submitit (`pip install submitit`).

tools/submit_slurm.py --nodes 2 --gpus-per-node 8 --hours 24 tools/train_net.py --config coco_faster_rcnn_R101.yaml

A job that is pre-empted or out of time saves, is queued again by itself, and goes on with --resume. Logs are in
submitit's files below --folder.
"""

import argparse
import os
import runpy
import signal
import sys
from pathlib import Path

from resnet_backbones.errors import UserError, one_line_errors
from resnet_backbones.training.preemption import INTERRUPTED

os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported, here and in the job


class Training:
    """A task of the job: one rank, started by Slurm."""

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def __call__(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        sys.argv = [*self.command, "--resume"]
        try:
            runpy.run_path(self.command[0], run_name="__main__")
        except SystemExit as stop:
            if stop.code == INTERRUPTED:
                os.kill(os.getpid(), signal.SIGUSR1)  # now submitit's, which queues the job again
            if stop.code:
                raise RuntimeError(f"{' '.join(self.command)} ended with status {stop.code}") from stop

    def checkpoint(self):
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(args: argparse.Namespace):
    """submitit's job. Raises `UserError` where submitit or Slurm is missing."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise UserError("submit_slurm.py needs submitit, which is not installed: pip install submitit.") from error
    if not args.command or not Path(args.command[0]).is_file():
        raise UserError("Give the tool and its arguments last, such as tools/train_net.py --config NAME.")
    try:
        executor = submitit.AutoExecutor(folder=args.folder, cluster=args.cluster, slurm_max_num_timeout=100)
    except RuntimeError as error:
        raise UserError(f"Slurm cannot be used here: {error}; --cluster local tries a job on this machine.") from error
    executor.update_parameters(
        name=Path(args.command[0]).stem,
        nodes=args.nodes,
        tasks_per_node=args.gpus_per_node,
        cpus_per_task=args.cpus_per_gpu,
        gpus_per_node=args.gpus_per_node if args.cluster == "slurm" else 0,
        timeout_min=round(60 * args.hours),
        slurm_partition=args.partition,
        slurm_signal_delay_s=120,
    )
    return executor.submit(Training([str(Path(args.command[0]).resolve()), *args.command[1:]]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="ranks on each of them")
    parser.add_argument("--cpus-per-gpu", type=int, default=8)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--partition", default=None)
    parser.add_argument("--folder", default="output/slurm", help="of submitit's files and logs")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: tasks on this machine")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the tool and its arguments")
    with one_line_errors():
        job = submit(parser.parse_args(argv))
    print(f"submitted as job {job.job_id}; its logs are {job.paths.stdout}")


if __name__ == "__main__":
    main()
