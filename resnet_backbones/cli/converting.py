"""Convert a weights file, and compare the features before and after, also in the other library's own network."""

import argparse
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from .. import backbones
from ..classifiers import architecture_of
from ..errors import UserError
from ..optional import import_timm
from ..paths import atomic_write
from ..preprocessing import Normalize, Preprocessing, imagenet
from ..weights import (
    Checkpoint,
    below,
    check_output,
    detect_format,
    find_prefix,
    fit_weights,
    from_ours,
    read_checkpoint,
    read_ours,
    to_ours,
    write_checkpoint,
)
from ..weights.hub import PREFIX, parse, upload

TOLERANCE = 1e-4  # relative to the largest value of a feature; float32 rounding gives about 1e-6
BATCH_NORMS = ("BN", "FrozenBN", "SyncBN")  # the same in evaluation


def convert(args: argparse.Namespace) -> None:
    """Convert `args.source` to `args.output`, print what was done, and verify the file before it is put in place."""
    if not args.output.startswith(PREFIX):
        convert_to(Path(args.output), args)
        return
    target = parse(args.output)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / Path(target.file).name
        convert_to(output, args)
        print(f"uploaded: {upload(output, target)}")


def convert_to(output: Path, args: argparse.Namespace) -> None:
    """`convert` to a local file."""
    check_output(output)
    source = read_checkpoint(args.source)
    state_input(source, args)
    print(f"{args.source}: {len(source.state)} tensors with the names of {detect_format(source.state)}")
    try:
        ours = to_ours(source)
    except UserError as error:
        raise UserError(f"{args.source}: {error}") from error
    before = without_prefix(ours.checkpoint)
    name, options = _architecture(before, args)
    if name is not None:
        before.metadata["architecture"] = {"name": name, "options": options}
    channel_order = args.channel_order or ("BGR" if args.to == "caffe2" else "RGB")
    theirs = from_ours(before, args.to, channel_order, args.fold)
    with atomic_write(output) as temporary:
        write_checkpoint(temporary, theirs.checkpoint)
        for step in ours.steps + theirs.steps:
            print(f"  {step}")
        for skipped in (ours.skipped, theirs.skipped):
            if skipped:
                print(f"  skipped {len(skipped)} tensors without a name there: {', '.join(skipped[:8])}")
        print(f"{args.output}: {len(theirs.checkpoint.state)} tensors; architecture {name or 'not recognized'}")
        _print_preprocessing(theirs.checkpoint.preprocessing(), args.to == "detectron2", options)
        if name is not None:
            for line in verify(before, temporary, args.to, name, options):
                print(f"  {line}")


def state_input(source: Checkpoint, args: argparse.Namespace) -> None:
    """Add what the command says about the input of `source` to its metadata, which must not state it already."""
    pixel_options = args.pixel_mean or args.pixel_std
    if "preprocessing" in source.metadata:
        if pixel_options:
            raise UserError(f"{args.source} states its mean and std; remove --pixel-mean and --pixel-std.")
        return
    order = args.source_order
    if pixel_options and order is None:
        if detect_format(source.state) not in ("caffe2", "detectron2"):
            raise UserError("--pixel-mean and --pixel-std need the order of their numbers: --source-order RGB or BGR.")
        order = "BGR"
    if order is None:
        return
    known = imagenet(order)
    if pixel_options:
        mean, std = ([255 / known.input_range * v for v in values] for values in (known.mean, known.std))
        known = Preprocessing(args.pixel_mean or mean, args.pixel_std or std, order, input_range=255.0)
    source.metadata["preprocessing"] = asdict(known)


def without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """The tensors behind a trainer's prefix of the residual net, such as "module.encoder_q.", without the prefix."""
    net = find_prefix({"layer1.0.conv1.weight": torch.Size()}, checkpoint.state)
    prefix = re.sub(r"(^|(?<=\.))(backbone\.)?(body\.)?$", "", net)
    return checkpoint._replace(state=below(prefix, checkpoint.state))


def _architecture(checkpoint: Checkpoint, args: argparse.Namespace) -> tuple[str | None, dict]:
    """The name and options of `build_backbone`: from the command, from the metadata, or recognized by the tensors."""
    name = args.name or checkpoint.metadata.get("architecture", {}).get("name") or recognize_backbone(checkpoint.state)
    name, options = architecture_of(checkpoint, args.source, name)
    if args.stride_in_1x1 == "yes":
        options = options | {"stride_in_1x1": True}
    elif args.stride_in_1x1 == "no":
        options = {option: value for option, value in options.items() if option != "stride_in_1x1"}
    return name, options


def _print_preprocessing(preprocessing: Preprocessing | None, for_detectron2: bool, options: dict) -> None:
    if preprocessing is None:
        print("  its input is unknown; for weights trained on ImageNet give --source-order RGB or BGR")
        return
    order, input_range = preprocessing.channel_order, preprocessing.input_range
    mean, std = ([round(v, 4) for v in values] for values in (preprocessing.per_channel().mean, preprocessing.std))
    print(f"  images: {order} in [0, {input_range:g}], mean {mean}, std {std}")
    if for_detectron2:
        mean, std = ([round(255 / input_range * v, 3) for v in values] for values in (mean, std))
        stride = bool(options.get("stride_in_1x1"))
        print(f"  in detectron2: INPUT.FORMAT {order} MODEL.PIXEL_MEAN {mean}")
        print(f"    MODEL.PIXEL_STD {std} MODEL.RESNETS.STRIDE_IN_1X1 {stride}")


def recognize_backbone(state: dict[str, Tensor]) -> str | None:
    """The name of the residual backbone that has the tensors of `state`; None if none or several match.

    `state` may also be an FPN's or a detector's.
    """
    shapes = {
        name: tensor.shape
        for name, tensor in body_of(state).items()
        if name.startswith(("conv1", "bn1", "layer")) and not re.search("offset|num_batches_tracked", name)
    }
    depths = tuple(
        len({name.split(".")[1] for name in shapes if name.startswith(f"layer{stage}.")} - {"bn"})
        for stage in range(1, 5)
    )
    found = []
    for name, row in (backbones.RESNETS | backbones.CIFAR_RESNETS).items():
        if row["depths"] == depths[: len(row["depths"])]:
            with torch.device("meta"):
                built = backbones.build_backbone(name).state_dict()
            if shapes == {n: t.shape for n, t in built.items() if not n.endswith("num_batches_tracked")}:
                found.append(name)
    return found[0] if len(found) == 1 else None


def body_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The residual network's part of a state_dict with our names."""
    prefixes = ("backbone.body.", "body.", "backbone.")
    return below(next((p for p in prefixes if any(name.startswith(f"{p}conv1.") for name in state)), ""), state)


def verify(before: Checkpoint, output: Path, target_format: str, name: str, options: dict) -> Iterator[str]:
    """Compare the features of a random image before and after the conversion, and in the other library's network.

    Args:
        before: under our names.
        output: the converted file.
        target_format: one of `weights.FORMATS`.
        name, options: as in `build_backbone`.

    Yields a line for each comparison. Raises `UserError` if features differ by more than `TOLERANCE`, unless a folded
    mean explains it.
    """
    image = torch.randint(256, (3, 128, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    after, raw = read_ours(str(output)), read_checkpoint(str(output))
    expected = _our_features(before, name, options, image)
    mean_is_folded = after.preprocessing() is not None and not any(after.preprocessing().per_channel().mean)
    yield _compare(expected, _our_features(after, name, options, image), "read back here", mean_is_folded)
    features = None
    if target_format in OTHER_NETWORKS:
        prepared = Normalize(raw.preprocessing() or Preprocessing())(image)[None]
        with torch.no_grad():
            features = OTHER_NETWORKS[target_format](name, options, raw.state, prepared)
    if features is not None:
        yield _compare(expected, features, f"in {target_format}'s own network", mean_is_folded)
    elif target_format != "resnet_backbones":
        yield f"not compared in {target_format}'s own network, which cannot be built here"


def _our_features(checkpoint: Checkpoint, name: str, options: dict, image: Tensor) -> list[Tensor]:
    norm = options.get("norm", "BN")
    backbone = backbones.build_backbone(name, **options | {"norm": "BN" if norm in BATCH_NORMS else norm})
    fit_weights(backbone, Checkpoint(body_of(checkpoint.state), checkpoint.metadata), "the converted file")
    prepared = Normalize(checkpoint.preprocessing() or Preprocessing())(image)[None]
    with torch.no_grad():
        return list(backbone.eval()(prepared).values())


def _torchvision_features(name: str, options: dict, state: dict[str, Tensor], image: Tensor) -> list[Tensor] | None:
    if name not in torchvision.models.list_models(module=torchvision.models) or not _as_named(options):
        return None
    net = torchvision.models.get_model(name, weights=None)
    net.fc = nn.Identity()
    net.load_state_dict(body_of(state), strict=False)
    features = [net.eval().maxpool(net.relu(net.bn1(net.conv1(image))))]
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        features.append(layer(features[-1]))
    return features[1:]


def _timm_features(name: str, options: dict, state: dict[str, Tensor], image: Tensor) -> list[Tensor | None] | None:
    timm = import_timm()
    timm_name = name.replace("preact_resnet", "resnetv2_")
    if timm_name not in timm.list_models() or not _as_named(options):
        return None
    net = timm.create_model(timm_name, num_classes=0)
    net.load_state_dict(body_of(state), strict=False)
    # Only res5: in timm's pre-activation nets res2 … res4 are raw sums, ours are normalized and activated.
    return [None, None, None, net.eval().forward_features(image)]


def _detectron2_features(name: str, options: dict, state: dict[str, Tensor], image: Tensor) -> list[Tensor] | None:
    if find_spec("detectron2") is None:
        return None
    from ..hosts.detectron2 import own_resnet

    row = backbones.RESNETS.get(name)
    if row is None or set(row) - {"block", "depths", "groups", "width_per_group"}:
        return None
    if not _as_named({option: value for option, value in options.items() if option != "stride_in_1x1"}):
        return None
    settings = {"NUM_GROUPS": row.get("groups", 1), "WIDTH_PER_GROUP": row.get("width_per_group", 64)}
    depth = int(re.search(r"\d+", name)[0])
    net = own_resnet(depth, STRIDE_IN_1X1=bool(options.get("stride_in_1x1")), **settings)
    prefixes = ("backbone.bottom_up.", "bottom_up.", "backbone.")
    net.load_state_dict(below(next((p for p in prefixes if f"{p}stem.conv1.weight" in state), ""), state), strict=False)
    return list(net(image).values())


OTHER_NETWORKS = {
    "torchvision": _torchvision_features,
    "timm": _timm_features,
    "detectron2": _detectron2_features,
}


def _compare(expected: list[Tensor], features: list[Tensor | None], where: str, mean_is_folded: bool) -> str:
    pairs = [(a, b) for a, b in zip(expected, features, strict=True) if b is not None]
    # torch's max keeps a NaN, Python's does not.
    worst = float(torch.stack([(a - b).abs().max() / a.abs().max().clamp(min=1e-30) for a, b in pairs]).max())
    result = f"features {where}: largest difference {worst:.1e} of the largest value"
    if not worst <= TOLERANCE and not mean_is_folded:
        raise UserError(f"The converted weights do not give the same {result}.")
    return result + (", at the border, where the padding stood for the mean" if mean_is_folded else "")


def _as_named(options: dict) -> bool:
    """Whether the network is built as its name says, with a batch norm."""
    return options.get("norm", "BN") in BATCH_NORMS and not any(v for option, v in options.items() if option != "norm")
