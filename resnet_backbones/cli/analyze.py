"""Show what a backbone costs, stage by stage: parameters, multiply-adds (FLOPs), activations and output shapes.

    resnet-backbones analyze resnet50_fpn --input 800x1333 norm=FrozenBN freeze_at=2
    resnet-backbones analyze resnet50 --classifier --json stride_in_1x1=true

key=value are options of build_backbone, with values in YAML. FLOPs and activations are those of convolutions and matrix
products, for one image. The weights are random.
"""

import json
import re
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from ..config.loading import NOT_YAML
from ..errors import UserError, one_line_errors, reason
from . import command_parser

if TYPE_CHECKING:
    from torch import nn

COLUMNS = ("parameters", "trainable", "frozen", "flops", "activations")


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("analyze", __doc__)
    parser.add_argument("name", help="a registered backbone, or timm:NAME")
    parser.add_argument("options", nargs="*", metavar="key=value")
    parser.add_argument("--input", metavar="HxW", help="pixels; by default 224x224, 32x32 for cifar_*")
    parser.add_argument("--classifier", action="store_true", help="with average pooling and fc, of num_classes=…")
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
        except (TypeError, RuntimeError) as error:  # of torch, about impossible values
            raise UserError(f"{name} cannot be built with {options}: {reason(error)}") from error


def table(rows: dict[str, dict]) -> str:
    lines = [f"{'':<9}" + "".join(f"{column:>16}" for column in COLUMNS) + "  output"]
    for name, row in rows.items():
        shapes = ["x".join(map(str, shape)) for shape in row["output"].values()]
        if len(shapes) > 1:
            shapes = [f"{feature} {shape}" for feature, shape in zip(row["output"], shapes, strict=True)]
        lines.append(f"{name:<9}" + "".join(f"{row[column]:>16,}" for column in COLUMNS) + f"  {', '.join(shapes)}")
    return "\n".join(line.rstrip() for line in lines)
