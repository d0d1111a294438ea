"""The command line: `resnet-backbones COMMAND`, or `python -m resnet_backbones COMMAND`."""

import importlib
import os
import signal
import sys

from . import __version__
from .errors import UserError, one_line_errors, unknown

# Each is a module of `cli`, imported when it is called for.
COMMANDS = {
    "train": "train a detector from a config, or evaluate one",
    "pretrain": "train a classifier, whose backbone detectors can load, or evaluate one",
    "predict": "predict on images, folders, URLs and videos with a checkpoint",
    "export": "export a detector, classifier or backbone to ONNX, OpenVINO or torch.export",
    "evaluate": "score detections in COCO's results format",
    "report": "show where detections err: a page of curves, tables and images",
    "check-data": "check the data of a config before training: counts, sizes, faults, near-identical images",
    "anchors": "propose anchors that fit the boxes of a config's training data",
    "convert": "convert weights between torchvision, timm, detectron2, Caffe2 and this package",
    "analyze": "show parameters, FLOPs and activations of a backbone, stage by stage",
    "list": "list the names of the backbones",
    "train-detectron2": "train one of our backbones with detectron2's own trainer",
    "submit-slurm": "submit a training run to Slurm",
    "write-truths": "measure the backbones again and update the table in configs/README.md",
}
HELP = """usage: resnet-backbones COMMAND [arguments]

Residual backbones for object detection, from ImageNet pretraining to COCO mAP.

commands:
{commands}

`resnet-backbones COMMAND --help` shows the arguments of a command, `resnet-backbones --version` the version.
"""


def main(argv: list[str] | None = None) -> None:
    try:
        run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `resnet-backbones list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
    except KeyboardInterrupt as error:  # whose message says how to go on
        print(f"interrupted. {error}".rstrip(), file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def run(argv: list[str] | None) -> None:
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:18}{text}" for name, text in COMMANDS.items())), end="")
    elif command == "--version":
        print(f"resnet-backbones {__version__}")
    elif command in COMMANDS:
        importlib.import_module(f".cli.{command.replace('-', '_')}", __package__).main(arguments)
    else:
        with one_line_errors():
            raise UserError(unknown("command", command, COMMANDS))


if __name__ == "__main__":
    main()
