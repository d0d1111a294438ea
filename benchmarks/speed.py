#!/usr/bin/env python3
"""Time and memory of ours against torchvision, detectron2 and timm, where installed, as a Markdown table.

python -m benchmarks.speed                                 # every part on ResNet-50, on a GPU if there is one
python -m benchmarks.speed --only backbone fpn --name resnet101 --compile --rounds 9 --threads 2
python -m benchmarks.speed --only detector --device cuda --amp bf16 --json detector.json

backbone   ResNet, FrozenBN, stem and res2 frozen: forward, and forward and backward
fpn        the same with an FPN
detector   Faster R-CNN with an FPN: a training step of two images, and inference
memory     the peak memory of that training step, also with BN in evaluation instead of FrozenBN
loader     images/s of the detection loader over generated JPEGs
evaluator  COCO's box metrics, CPU time, against pycocotools
profile    the operators that our training step spends its time in
ablation   our training step without one mechanism at a time
deployment CPU time of inference: eager, fused, compiled, ONNX Runtime and OpenVINO in fp32, bf16 and int8

All nets have the same weights, and the remarks say how far their results differ. The contenders of a part take
turns within one process; a ratio is the median over rounds of our seconds / theirs, with its quartiles.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from benchmarks.settings import AMP, PARTS, Settings
from resnet_backbones import __version__
from resnet_backbones.errors import UserError, one_line_errors

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}
COUNTS = {
    "size": "side of the images of backbone and fpn, pixels",
    "batch": "number of those images",
    "short_side": "shorter side of the detector's images, pixels",
    "jpegs": "images that the loaders read",
    "images": "images that the evaluators score",
    "rounds": "timed turns",
    "threads": "threads of torch",
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; see --help.")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--name", default=DEFAULTS["name"], help="a registered backbone, without _fpn; %(default)s")
    for name, text in COUNTS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=DEFAULTS[name], metavar="N", help=f"{text}; {DEFAULTS[name]}")
    parser.add_argument("--device", metavar="cpu|cuda", help="by default a GPU if there is one")
    parser.add_argument("--amp", default="none", metavar="|".join(AMP), help="autocast")
    parser.add_argument("--compile", action="store_true", help="also backbones and FPNs under torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's seconds, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        args = vars(parse(argv))
        path, device = args.pop("json"), args.pop("device")
        settings = Settings(**args | {"only": tuple(args["only"]), "device": device or "cpu"})

        import torch

        from benchmarks import parts, report
        from resnet_backbones.evaluation.report import write_json

        if path and not path.parent.is_dir():
            raise UserError(f"--json is {path}, whose folder does not exist.")
        if device is None and torch.cuda.is_available():
            settings = dataclasses.replace(settings, device="cuda")
        parts.prepare(settings)
        command = shlex.join(["python", "-m", "benchmarks.speed", *(sys.argv[1:] if argv is None else argv)])
        conditions, rows = report.conditions(__version__, command, settings), []
        print(report.header(conditions, settings.compile), flush=True)
        for part in settings.only:
            rows += (measured := parts.measure_part(part, settings))
            print(*report.lines(measured, settings.compile), sep="\n", flush=True)
        if path:
            write_json(path, report.as_json(conditions, settings, rows))


if __name__ == "__main__":
    main()
