"""List the names of the backbones, one per line.

    resnet-backbones list ["PATTERN"]              such as "preact*" or "resnet50*_fpn"
    resnet-backbones list ["PATTERN"] --table      with parameters, FLOPs, and channels/stride of the features

The table is for images of 224x224 pixels, 32x32 for cifar_*.
"""

from ..errors import UserError, one_line_errors
from . import command_parser


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("list", __doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="a shell pattern, in quotes")
    parser.add_argument("--table", action="store_true", help="show parameters, FLOPs and features")
    args = parser.parse_args(argv)
    from ..backbones import list_backbones

    with one_line_errors():
        names = list_backbones(args.pattern)
        if not names:
            raise UserError(f"No backbone matches {args.pattern!r}; `resnet-backbones list` prints all names.")
        print("\n".join(table(names) if args.table else names))


def table(names: list[str]) -> list[str]:
    from ..analysis.truths import billions, feature_list, load_truths, measure, millions

    truths = load_truths()
    lines = [f"{'name':<24} {'parameters':>10} {'FLOPs':>9}  features"]
    for name in names:
        truth = truths.get(name) or measure(name)
        sizes = f"{millions(truth['parameters']):>10} {billions(truth['flops']):>9}"
        lines.append(f"{name:<24} {sizes}  {feature_list(truth['features'])}")
    return lines
