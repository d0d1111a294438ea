"""List the registered backbones with their parameters, multiply-adds and features (channels/stride).

python -m resnet_backbones ["PATTERN"]     such as "preact*" or "resnet50*_fpn"

Figures are for images of 224x224 pixels, 32x32 for cifar_*.
"""

import argparse

from .analysis.truths import billions, feature_list, load_truths, measure, millions
from .backbones import list_backbones
from .errors import UserError, one_line_errors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m resnet_backbones", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a shell pattern, in quotes")
    args = parser.parse_args(argv)
    with one_line_errors():
        names = list_backbones(args.pattern)
        if not names:
            raise UserError(f"No backbone is called {args.pattern!r}; python -m resnet_backbones lists all names.")
        truths = load_truths()
        print(f"{'name':<24} {'parameters':>10} {'FLOPs':>9}  features")
        for name in names:
            truth = truths.get(name) or measure(name)
            sizes = f"{millions(truth['parameters']):>10} {billions(truth['flops']):>9}"
            print(f"{name:<24} {sizes}  {feature_list(truth['features'])}")


if __name__ == "__main__":
    main()
