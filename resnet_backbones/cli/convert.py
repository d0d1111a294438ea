"""Convert weights between torchvision, timm, detectron2, Caffe2 and this package, and verify the result.

    resnet-backbones convert torchvision://resnet50/IMAGENET1K_V2 r50.pkl --to detectron2
    resnet-backbones convert R-50.pkl r50.safetensors --to resnet_backbones
    resnet-backbones convert r50.safetensors r50.pkl --to caffe2 --channel-order BGR --fold std

IN is a file, a URL, hf://, torchvision:// or timm://. The suffix of OUT, .safetensors, .pth or .pkl, decides its file
format. OUT may also be hf://OWNER/REPO[/FILE][@BRANCH], to upload it there.
If IN's backbone is recognized, OUT is written only if it gives the same features.
"""

from ..errors import UserError, one_line_errors
from . import command_parser

FORMATS = ("resnet_backbones", "torchvision", "timm", "detectron2", "caffe2")  # as in `weights`, which imports torch


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("convert", __doc__)
    parser.add_argument("source", metavar="IN", help="the weights to convert")
    parser.add_argument("output", metavar="OUT", help="the file to write, or hf://")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), help="of OUT's images; default RGB, BGR for caffe2")
    parser.add_argument("--fold", nargs="+", default=[], choices=("std", "mean"), help="into the first convolution")
    parser.add_argument("--source-order", choices=("RGB", "BGR"), help="of IN's images, if IN does not state it")
    about = "of IN's images in [0, 255], in the order of --source-order, if IN does not state it"
    parser.add_argument("--pixel-mean", nargs=3, type=float, metavar=("A", "B", "C"), help=f"mean {about}")
    parser.add_argument("--pixel-std", nargs=3, type=float, metavar=("A", "B", "C"), help=f"std {about}")
    parser.add_argument("--stride-in-1x1", choices=("yes", "no"), help="in IN's bottlenecks, if IN does not state it")
    parser.add_argument("--name", help="IN's backbone, if IN does not state it and its shapes fit several")
    args = parser.parse_args(argv)
    from .converting import convert

    with one_line_errors():
        if "mean" in args.fold and "std" not in args.fold:
            raise UserError("--fold mean needs std: --fold std mean.")
        convert(args)
