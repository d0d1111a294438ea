"""Train with detectron2's own trainer and COCOEvaluator, with our backbones in its registry.

    resnet-backbones train-detectron2 --config-file detectron2/bccd_faster_rcnn_preact_R18.yaml \\
        --datasets bccd_faster_rcnn_R18.yaml [--num-gpus 8] [--resume] [--eval-only] [KEY VALUE …]

The config and options are detectron2's; MODEL.BACKBONE.NAME may be any of our names, MODEL.BACKBONE.WEIGHTS any of our
weights. --datasets registers the datasets of one of our configs, built-in ones and those of its `datasets:` section.
"""

import argparse

from ..config import find_config, load_config
from ..errors import one_line_errors


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        from ..hosts import detectron2 as host

        parser = host.argument_parser(epilog=__doc__)
        parser.add_argument("--datasets", help="one of our configs: a YAML file, or the name of a shipped one")
        args = parser.parse_args(argv)
        if "://" not in args.config_file:
            args.config_file = str(find_config(args.config_file))
        host.launch_training(train, args)


def train(args: argparse.Namespace) -> None:
    """The job of each rank."""
    from ..data.datasets import load_annotations
    from ..hosts import detectron2 as host

    if args.datasets is not None:
        config = load_config(args.datasets)
        for name in dict.fromkeys([*config.data.train, *config.data.test]):
            host.register_dataset(name, load_annotations(name, config.datasets))
    host.train(args)
