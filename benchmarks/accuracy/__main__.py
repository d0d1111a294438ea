#!/usr/bin/env python3
"""AP over seeds of our training, detectron2's own trainer and a bare loop over torchvision's detector.

    python -m benchmarks.accuracy --configs bccd_faster_rcnn_R18 nuclei_mask_rcnn_R18 --seeds 0 1 2
    python -m benchmarks.accuracy --systems ours --variant "ema: solver.ema_decay=0.99" [key=value …]

All read the same config, with the trailing key=value pairs: the same images, sizes, schedule and, per seed, initial
weights; all are scored by the same scorer. A variant is ours with more pairs. Each training run is a process of its own
and writes one JSON file to --output; finished ones are not repeated. Prints means with 95 % intervals (Student's t) and
each system's paired difference from the first one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from resnet_backbones.config import load_config
from resnet_backbones.errors import UserError, one_line_errors

from .table import print_tables

SYSTEMS = ("ours", "torchvision", "detectron2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["bccd_faster_rcnn_R18", "nuclei_mask_rcnn_R18"])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--variant", action="append", default=[], metavar="'NAME: key=value …'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("output/accuracy"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    with one_line_errors():
        runs = {system: (system, []) for system in args.systems} | dict(map(read_variant, args.variant))
        for config in args.configs:
            for _, more in runs.values():
                load_config(config, [*args.overrides, *more])  # before hours of training
        for config in args.configs:
            for seed in args.seeds:  # seed by seed, so that the results are balanced at any time
                for name, (system, more) in runs.items():
                    folder = args.output / config / name / str(seed)
                    train(system, config, folder, [*args.overrides, *more, f"seed={seed}"])
        print_tables(args.output, args.configs, list(runs), args.seeds)


def read_variant(text: str) -> tuple[str, tuple[str, list[str]]]:
    """`NAME: key=value …` as (name, (system, overrides))."""
    name, colon, pairs = text.partition(":")
    if not colon or not name.strip() or not pairs.strip():
        raise UserError(f"--variant is {text!r}; it must be 'NAME: key=value …'.")
    return name.strip(), ("ours", pairs.split())


def train(system: str, config: str, folder: Path, overrides: list[str]) -> None:
    """One training run in a process of its own, unless its result exists. Raises `UserError` if it fails."""
    result = folder / "result.json"
    if result.exists():
        known = json.loads(result.read_text())["overrides"]
        if known != overrides:
            raise UserError(f"{result} is from {' '.join(known)}, not {' '.join(overrides)}; choose another --output.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "benchmarks.accuracy.run", system, config, str(folder), *overrides]
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        raise UserError(f"{system} on {config} failed with status {status}; see {folder / 'log.txt'}.")
    metrics = json.loads(result.read_text())["metrics"]
    print(f"{folder}: bbox/AP {metrics['bbox/AP']:.2f}", flush=True)


if __name__ == "__main__":
    main()
