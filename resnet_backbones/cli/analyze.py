"""Show what a backbone costs, stage by stage: parameters, multiply-adds (FLOPs), activations and output shapes.

    resnet-backbones analyze resnet50_fpn --input 800x1333 norm=FrozenBN freeze_at=2
    resnet-backbones analyze resnet50 --classifier --json stride_in_1x1=true

key=value are options of build_backbone, with values in YAML. FLOPs and activations are those of convolutions and matrix
products, for one image. The weights are random.

Or repeat the papers' measurements on a network; see `resnet-backbones analyze responses --help`:

    resnet-backbones analyze responses|gradients|lesions|shortcuts --weights FILE --data ROOT --output DIR
"""

import json
import re
import sys
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from ..config.loading import NOT_YAML
from ..errors import UserError, one_line_errors, reason
from . import command_parser

if TYPE_CHECKING:
    from torch import nn

STUDIES = ("responses", "gradients", "lesions", "shortcuts")
COLUMNS = ("parameters", "trainable", "frozen", "flops", "activations")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in STUDIES:
        return study(argv)
    parser = command_parser("analyze", __doc__)
    parser.add_argument("name", help="a registered backbone, or timm:NAME")
    parser.add_argument("options", nargs="*", metavar="key=value")
    parser.add_argument("--input", metavar="HxW", help="pixels; by default 224x224, 32x32 for cifar_*")
    parser.add_argument("--classifier", action="store_true", help="with average pooling and fc for num_classes=…")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_intermixed_args(argv)
    from ..analysis.cost import analyze
    from ..analysis.truths import setting

    with one_line_errors():
        size, num_classes = setting(args.name)
        size = parse_size(args.input) if args.input else size
        options = parse_options(args.options)
        if args.classifier:
            options.setdefault("num_classes", num_classes)
        rows = analyze(build(args.name, args.classifier, options), size, options.get("in_channels", 3))
        if args.json:
            print(json.dumps({"name": args.name, "input": size, "options": options, "rows": rows}))
        else:
            print(table(rows))


STUDY = """Repeat the measurements of the deep residual learning papers on your own networks.

    responses   standard deviations of the layers' responses (arXiv 1512.03385 Figure 7)
    gradients   the loss's gradient at every block, and its part through the shortcuts alone (1603.05027 section 2);
                networks of --weights are also measured at initialization
    lesions     the error without each block, without several, and with blocks out of order; the gradient by path
                length (1605.06431 Figures 3, 5 and 6)
    shortcuts   compare --weights by parameters, FLOPs, error and time; or --name, trained with each shortcut

    resnet-backbones analyze lesions --weights model.safetensors --data cifar10 --output out
    resnet-backbones analyze gradients --name cifar_plain56 cifar_resnet56 --data cifar10 --output out
    resnet-backbones analyze lesions --weights best.pt --data bccd_faster_rcnn_R18.yaml --output out

Writes STUDY.json and STUDY.png to the output folder. To resume an interrupted study, repeat the command.
"""


def study(argv: list[str]) -> None:
    """One of `STUDIES`."""
    parser = command_parser("analyze", STUDY)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--weights", nargs="+", metavar="FILE", help="from pretrain or train, or published classifiers")
    parser.add_argument("--name", nargs="+", metavar="NAME", help="backbones, untrained or those of --weights")
    parser.add_argument(
        "--data",
        required=True,
        metavar="ROOT",
        help="the folder of images, or for a detector the config with its test set",
    )
    parser.add_argument("--split", help="the split of --data; default for classifiers: val")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="number of images, drawn with --seed; default: 1000 for responses, 512 for gradients, else all",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 128, or 4 for detectors")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="random draws per experiment of lesions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=2, help="loader processes")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of build_backbone for --name")
    args = parser.parse_intermixed_args(argv)
    for key in ("weights", "name"):  # they also take the options that follow
        given = getattr(args, key) or []
        args.options += [value for value in given if re.match(r"\w+=", value)]
        setattr(args, key, [value for value in given if not re.match(r"\w+=", value)])
    with one_line_errors():
        for name, least in (("images", 1), ("batch_size", 1), ("draws", 0), ("num_workers", 0)):
            if (value := getattr(args, name)) is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}.")
        if not 0 <= args.seed < 2**32:
            raise UserError(f"--seed is {args.seed}; it must be from 0 to {2**32 - 1}.")
        for name, what in (("data", "what to run the networks on"), ("output", "the folder for the results")):
            if not getattr(args, name):
                raise UserError(f"--{name} is empty; give {what}.")
        from ..training.logger import set_up_logging
        from .studies import run_study

        set_up_logging()
        run_study(args, parse_options(args.options))


def parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"--input is {text!r}; it must be HEIGHTxWIDTH in pixels, such as 800x1333.")
    return int(match[1]), int(match[2])


def parse_options(pairs: list[str]) -> dict:
    options = {}
    for pair in pairs:
        try:
            if not re.match(r"\w+=", pair):
                raise ValueError
            options |= OmegaConf.to_container(OmegaConf.from_dotlist([pair]))
        except NOT_YAML:
            raise UserError(f"{pair[:80]!r} is not an option; options are key=value, such as norm=FrozenBN.") from None
    return options


def build(name: str, classifier: bool, options: dict) -> "nn.Module":
    from ..backbones import allow_random_frozen, build_backbone
    from ..classifiers import build_classifier

    with allow_random_frozen():  # nothing is trained here
        try:
            return build_classifier(name, **options) if classifier else build_backbone(name, **options)
        except (TypeError, RuntimeError) as error:  # from torch, for impossible values
            raise UserError(f"{name} cannot be built with {options}: {reason(error)}") from error


def table(rows: dict[str, dict]) -> str:
    lines = [f"{'':<9}" + "".join(f"{column:>16}" for column in COLUMNS) + "  output"]
    for name, row in rows.items():
        shapes = ["x".join(map(str, shape)) for shape in row["output"].values()]
        if len(shapes) > 1:
            shapes = [f"{feature} {shape}" for feature, shape in zip(row["output"], shapes, strict=True)]
        lines.append(f"{name:<9}" + "".join(f"{row[column]:>16,}" for column in COLUMNS) + f"  {', '.join(shapes)}")
    return "\n".join(line.rstrip() for line in lines)
