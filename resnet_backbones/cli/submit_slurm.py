"""Submit a training run to Slurm, on one or several machines, with submitit (`pip install submitit`).

resnet-backbones submit-slurm --nodes 2 --gpus-per-node 8 --hours 24 train --config coco_faster_rcnn_R101.yaml

A job that is preempted or runs out of time saves its state, is requeued, and resumes. The logs are in submitit's files
below --folder.
"""

import argparse
import os
import runpy
import signal
import sys
from pathlib import Path

from ..errors import UserError, one_line_errors
from . import command_parser, pretrain, train

COMMANDS = {"train": train.main, "pretrain": pretrain.main}
os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported, here and in the job


class Training:
    """A task of the job: one rank, started by Slurm."""

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def __call__(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        from ..training.preemption import PREEMPTED

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        name, *arguments = [*self.command, "--resume"]
        try:
            if name in COMMANDS:
                COMMANDS[name](arguments)
            else:
                sys.argv = [name, *arguments]
                runpy.run_path(name, run_name="__main__")
        except SystemExit as stop:
            if stop.code == PREEMPTED:
                os.kill(os.getpid(), signal.SIGUSR1)  # handled by submitit here, which requeues the job
            if stop.code:
                raise RuntimeError(f"{' '.join(self.command)} ended with status {stop.code}") from stop

    def checkpoint(self):
        """What submitit requeues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(args: argparse.Namespace):
    """The submitted job. Raises `UserError` if submitit or Slurm is missing."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise UserError("submit-slurm needs submitit, which is not installed: pip install submitit.") from error
    name, *arguments = args.command or [""]
    if name not in COMMANDS and not os.path.isfile(name):
        raise UserError("Give the command to run last: train or pretrain, or a Python script, with its arguments.")
    try:
        executor = submitit.AutoExecutor(folder=args.folder, cluster=args.cluster, slurm_max_num_timeout=100)
    except RuntimeError as error:
        raise UserError(f"Slurm cannot be used here: {error}; --cluster local runs the job on this machine.") from error
    executor.update_parameters(
        name=Path(name).stem,
        nodes=args.nodes,
        tasks_per_node=args.gpus_per_node,
        cpus_per_task=args.cpus_per_gpu,
        gpus_per_node=args.gpus_per_node if args.cluster == "slurm" else 0,
        timeout_min=round(60 * args.hours),
        slurm_partition=args.partition,
        slurm_signal_delay_s=120,
    )
    return executor.submit(Training([name if name in COMMANDS else os.path.abspath(name), *arguments]))


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("submit-slurm", __doc__)
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="ranks per machine")
    parser.add_argument("--cpus-per-gpu", type=int, default=8)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--partition", default=None)
    parser.add_argument("--folder", default="output/slurm", help="folder of submitit's files and logs")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: tasks on this machine")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="train or pretrain, or a script, with its arguments")
    args = parser.parse_args(argv)
    with one_line_errors():
        job = submit(args)
    print(f"submitted as job {job.job_id}; its logs are {job.paths.stdout}")
