#!/usr/bin/env python3
"""Convert weights between torchvision, timm, detectron2, Caffe2 and this package, and verify the result.

    tools/convert_weights.py torchvision://resnet50/IMAGENET1K_V2 r50.pkl --to detectron2
    tools/convert_weights.py R-50.pkl r50.safetensors --to resnet_backbones
    tools/convert_weights.py r50.safetensors r50.pkl --to caffe2 --channel-order BGR --fold std

IN is a file, a URL, torchvision:// or timm://. OUT is written as its suffix says: .safetensors, .pth or .pkl.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from resnet_backbones.architecture import told_architecture
from resnet_backbones.cli import verify as verification
from resnet_backbones.errors import UserError, one_line_errors
from resnet_backbones.preprocessing import imagenet
from resnet_backbones.weights import FORMATS, check_suffix, from_ours, read_checkpoint, recognise, to_ours
from resnet_backbones.weights.writing import write_checkpoint


def convert(args: argparse.Namespace) -> None:
    output = Path(args.output)
    check_suffix(output)
    source = read_checkpoint(args.source)
    if args.source_order is not None and "preprocessing" not in source.metadata:
        source.metadata["preprocessing"] = asdict(imagenet(args.source_order))
    print(f"{args.source}: {len(source.state)} tensors named as by {recognise(source.state)}")
    ours = to_ours(source)
    name = args.name or ours.checkpoint.metadata.get("architecture", {}).get("name")
    name = name or verification.architecture_of(ours.checkpoint.state)
    _, told = told_architecture(ours.checkpoint, args.source, name)
    stride = told.get("stride_in_1x1", False) if args.stride_in_1x1 is None else args.stride_in_1x1 == "yes"
    options = told | ({"stride_in_1x1": True} if stride else {})
    if name is not None:
        ours.checkpoint.metadata["architecture"] = {"name": name, "options": options}
    order = args.channel_order or ("BGR" if args.to == "caffe2" else "RGB")
    theirs = from_ours(ours.checkpoint, args.to, order, args.fold)
    unproven = output.with_name(f".unproven-{output.name}")
    write_checkpoint(unproven, theirs.checkpoint)
    for step in ours.steps + theirs.steps:
        print(f"  {step}")
    for left in (ours.left, theirs.left):
        if left:
            print(f"  left out, without a name there: {len(left)}, {', '.join(left[:8])}")
    print(f"{args.output}: {len(theirs.checkpoint.state)} tensors; architecture {name or 'not recognised'}")
    preprocessing = theirs.checkpoint.preprocessing()
    if preprocessing is None:
        print("  which images it takes is not told; --source-order RGB or BGR says it of weights from ImageNet")
    else:
        mean, std = ([round(v, 4) for v in values] for values in (preprocessing.per_channel().mean, preprocessing.std))
        print(f"  images: {preprocessing.channel_order} in [0, {preprocessing.input_range:g}], mean {mean}, std {std}")
        if args.to == "detectron2":
            scale = 255 / preprocessing.input_range
            mean, std = ([round(scale * v, 3) for v in values] for values in (mean, std))
            print(f"  in detectron2: INPUT.FORMAT {preprocessing.channel_order} MODEL.PIXEL_MEAN {mean}")
            print(f"    MODEL.PIXEL_STD {std} MODEL.RESNETS.STRIDE_IN_1X1 {stride}")
    try:
        if name is not None:
            given = (ours.checkpoint, str(unproven), args.to, name, options, detectron2_resnet())
            print("".join(f"  {line}\n" for line in verification.verify(*given)), end="")
        unproven.replace(output)
    finally:
        unproven.unlink(missing_ok=True)


def detectron2_resnet() -> Callable | None:
    """detectron2's own ResNet, where detectron2 is installed."""
    try:
        from resnet_backbones.detectors.detectron2 import own_resnet
    except ImportError:
        return None
    return own_resnet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="what to convert")
    parser.add_argument("output", metavar="OUT", help="the file to write")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), help="of OUT's images; default RGB, BGR for caffe2")
    parser.add_argument("--fold", nargs="+", default=[], choices=("std", "mean"), help="into the first layer")
    parser.add_argument("--source-order", choices=("RGB", "BGR"), help="of IN's images, where IN does not tell")
    parser.add_argument("--stride-in-1x1", choices=("yes", "no"), help="of IN, where IN does not tell")
    parser.add_argument("--name", help="of the backbone, where IN does not tell and its shapes fit several")
    args = parser.parse_args(argv)
    with one_line_errors():
        if "mean" in args.fold and "std" not in args.fold:
            raise UserError("--fold mean needs std: --fold std mean.")
        convert(args)


if __name__ == "__main__":
    main()
