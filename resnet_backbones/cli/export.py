"""Export a whole detector, a classifier or a backbone to ONNX, OpenVINO or torch.export, and verify the file.

    resnet-backbones export output/best.pt --format onnx --output detector.onnx
    resnet-backbones export output/best.pt --format openvino --output detector.xml --precision int8 --data bccd.yaml
    resnet-backbones export torchvision://resnet50/IMAGENET1K_V2 --name resnet50_fpn --format onnx --output fpn.onnx

WEIGHTS is a checkpoint of `train` or `pretrain`; with --name, weights for that backbone, which is exported alone.
The file is written only if it computes the same as the model, on generated images or those of --images.
"""

import sys
from pathlib import Path

from ..errors import UserError, one_line_errors
from . import command_parser

FORMATS = ("onnx", "openvino", "torch")  # as in `export`, which imports torch
PRECISIONS = ("fp32", "bf16", "int8")


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("export", __doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint; also a URL, hf:// or torchvision://")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=".onnx, .xml or .pt2")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="bf16 and int8 for openvino")
    parser.add_argument("--name", help="export this backbone alone, such as resnet50_fpn")
    parser.add_argument("--config", metavar="YAML", help="of the detector, if the checkpoint does not hold it")
    parser.add_argument("--classes", metavar="A,B", help="likewise its class names, in label order")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images to verify on, besides a blank one")
    about = "a config: print AP before and after on its data.test, calibrate int8 on its data.train"
    parser.add_argument("--data", metavar="YAML", help=about)
    args = parser.parse_args(argv)
    from ..export import VerificationError, check_request

    with one_line_errors():
        if args.precision == "int8" and args.data is None:
            raise UserError("--precision int8 needs the data to calibrate on: --data YAML, a config of train.")
        check_request(args.output, args.format, args.precision)
        from .exporting import export_weights

        try:
            export_weights(args)
        except VerificationError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
