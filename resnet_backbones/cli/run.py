"""How the training tools begin and end: their arguments, ranks, and a run's device, folder, log, seed and config.

torch and what is built on it are imported within the functions, so that --help and a wrong command need not wait.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, one_line_errors

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig


def parse_arguments(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """`config`, `eval_only`, `resume`, `num_gpus`, `max_restarts` and `overrides` of a command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--eval-only", action="store_true", help="score weights=FILE without training")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt in output_dir")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, one a GPU (or on the CPU)")
    parser.add_argument("--max-restarts", type=int, default=0, help="how often lost processes are replaced, --num-gpus")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, such as solver.lr=0.01")
    return parser.parse_intermixed_args(argv)


def run_tool(description: str, job: Callable[[argparse.Namespace], None], argv: list[str] | None = None) -> None:
    """Do `job` with the arguments of a command line, on as many ranks as it says.

    A run that is interrupted leaves with status `interruption.INTERRUPTED`, a user's error with 2 and one line. Where
    torchrun has replaced lost processes, the run goes on from its last checkpoint.
    """
    args = parse_arguments(description, argv)
    from torch.distributed.elastic.multiprocessing.errors import record

    from .. import distributed
    from .launch import launch

    args.resume = args.resume or (distributed.restarted() and not args.eval_only)
    with one_line_errors():
        if args.num_gpus < 1 or args.max_restarts < 0:
            raise UserError("--num-gpus must be at least 1, --max-restarts at least 0.")
        if args.num_gpus > 1 and not distributed.launched():
            sys.exit(launch(args.num_gpus, args.max_restarts, [sys.argv[0], *(sys.argv[1:] if argv is None else argv)]))
    # torchrun's report then holds the traceback of what went wrong in a rank.
    (record(_do) if distributed.launched() else _do)(job, args)
    distributed.shutdown()


def _do(job: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    from .. import distributed
    from ..data.workers import name_dead_workers

    with one_line_errors(), name_dead_workers(), distributed.lost_ranks_first():
        job(args)


def start(config: "DictConfig", eval_only: bool) -> "tuple[torch.device, Path, DictConfig]":
    """Join the other ranks, make the output folder with its log and complete config, and seed torch.

    Returns the device, the folder, and the config scaled to its batch.

    Raises `UserError` where there is nothing to evaluate or the folder cannot be written.
    """
    from .. import distributed
    from ..config import save_config
    from ..paths import output_folder
    from ..training.logger import set_up_logging
    from ..training.loop import set_seed
    from ..training.solver import scale_to_batch

    if eval_only and config.weights is None:
        raise UserError("--eval-only needs the weights to score: weights=FILE.")
    device, output_dir = distributed.init(), output_folder(config.output_dir)
    set_up_logging(output_dir / "log.txt")
    set_seed(config.seed, config.solver.deterministic)
    if distributed.is_main():
        save_config(config, output_dir / "config.yaml")
    return device, output_dir, scale_to_batch(config)
