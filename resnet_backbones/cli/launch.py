"""The arguments of train and pretrain, and their ranks."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import find_config, load_config
from ..errors import UserError, errors_about, one_line_errors
from . import command_parser

if TYPE_CHECKING:
    from omegaconf import DictConfig

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # torchrun forwards them to the ranks


def run(
    command: str,
    description: str,
    schema: type,
    job: Callable[["DictConfig", bool, bool], None],
    check: Callable[["DictConfig", bool], None],
    argv: list[str] | None = None,
) -> None:
    """Call `job(config, eval_only, resume)` with the parsed arguments, on --num-gpus ranks if given.

    `check(config, eval_only)` runs first, before the ranks start, so that its errors are reported once.
    Exits with status 75 if a signal interrupted the run and it is saved, and with 2 and one line for a `UserError`.
    Ranks that torchrun restarted resume from the last checkpoint.
    """
    parser = command_parser(command, description)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a shipped one")
    parser.add_argument("--eval-only", action="store_true", help="evaluate weights=FILE without training")
    parser.add_argument("--resume", action="store_true", help="continue from last.pt in output_dir")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU")
    parser.add_argument("--max-restarts", type=int, default=0, help="with --num-gpus: restarts after a process dies")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, such as solver.lr=0.01")
    args = parser.parse_intermixed_args(argv)
    with one_line_errors():
        if args.num_gpus < 1 or args.max_restarts < 0:
            raise UserError("--num-gpus must be at least 1, --max-restarts at least 0.")
        config = load_config(args.config, args.overrides, schema)
        if args.eval_only and config.weights is None:
            raise UserError("--eval-only needs the weights to score: weights=FILE.")
        with errors_about(str(find_config(args.config))):
            check(config, args.eval_only)
        from torch.distributed.elastic.multiprocessing.errors import record

        from .. import distributed
        from ..data.workers import name_dead_workers

        if args.num_gpus > 1 and not distributed.launched():
            launch(args.num_gpus, args.max_restarts, program(command, sys.argv[1:] if argv is None else argv))

    @record  # torchrun's report has the traceback of the rank that failed first
    def main() -> None:
        with one_line_errors(), name_dead_workers():
            job(config, args.eval_only, args.resume or distributed.restarts() > 0)

    main()
    distributed.shutdown()


def program(command: str, argv: list[str]) -> list[str]:
    """The program that torchrun must run to repeat this process; a script that registers its own names is kept."""
    spec, script = sys.modules["__main__"].__spec__, sys.argv[0]
    if spec is not None:  # started by python -m
        return ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [script, *sys.argv[1:]] if script.endswith(".py") else ["-m", "resnet_backbones", command, *argv]


def launch(num_gpus: int, max_restarts: int, program: list[str]) -> None:
    """Replace this process by torchrun with `program` on `num_gpus` ranks.

    Raises `UserError` if there are fewer GPUs; without any, the ranks share the CPU.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0:
        print(f"There is no GPU here: the {num_gpus} ranks run on the CPU.", flush=True)
    elif num_gpus > gpus:
        raise UserError(f"--num-gpus is {num_gpus}, but torch finds only {gpus} here.")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_gpus)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_gpus}"]
    torchrun += [f"--max-restarts={max_restarts}", f"--signals-to-handle={SIGNALS}"]
    os.execv(sys.executable, torchrun + program)
