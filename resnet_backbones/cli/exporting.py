"""The job of `export`: load what a checkpoint holds, export and verify it, and score it before and after."""

import argparse
import sys
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ..backbones import build_backbone
from ..config import image_channels, load_config
from ..data.annotations import Annotations
from ..data.dataset import DetectionDataset
from ..data.formats.listing import image_suffixes, is_image
from ..data.images import read_image
from ..data.unreadable import Unreadable, check_headers
from ..detectors import stated_config
from ..errors import UserError
from ..export import export, load, network_of
from ..export.network import Network
from ..export.verification import like
from ..inference.predictor import load_model
from ..weights import read_file
from .training import check_detector_classes, load_sets, scorer

CALIBRATION = 100  # images, evenly spaced


def export_weights(args: argparse.Namespace) -> None:
    """Export `args.weights` and print what was written, how far it is from the model, and the AP of both."""
    network = network_of(read_model(args))
    config = None if args.data is None else load_config(args.data)
    sets = [] if config is None else test_sets(network, config, args.weights)
    calibration = calibration_images(config) if args.precision == "int8" else ()
    inputs = None if args.images is None else [*images_of(args.images, network), blank(network)]
    difference = export(network, args.output, args.format, args.precision, inputs, calibration)
    print(f"compared on {difference}" if difference else f"{args.precision}: not compared, only run")
    if network.kind == "detection" and difference and not difference.found:
        print("  nothing was detected in them, so no boxes were compared; give images with objects: --images DIR")
    if config is not None:
        print_metrics(network, args.output, config, sets)
    shape = ", ".join(network.dynamic.get(k, str(size)) for k, size in enumerate(network.example.shape))
    kind = str(network.example.dtype).removeprefix("torch.")
    files = [args.output, *([args.output.with_suffix(".bin")] if args.format == "openvino" else [])]
    size = sum(file.stat().st_size for file in files)
    print(f"{args.output}: {args.precision}, {size / 1e6:.1f} MB")
    print(f"  {network.input}: {kind} ({shape}); gives {', '.join(network.outputs)}")


def read_model(args: argparse.Namespace) -> nn.Module:
    """The backbone `args.name`, or the detector or classifier that `args.weights` holds."""
    if args.name is not None:
        if args.config is not None or args.classes is not None:
            raise UserError("--config and --classes do not apply to the backbone that --name exports; leave them out.")
        return build_backbone(args.name, weights=args.weights)
    config = None if args.config is None else load_config(args.config)
    built_by = stated_config(read_file(args.weights).metadata, args.weights) if config is None else config
    if built_by is not None and built_by.detector.library != "torchvision":
        raise UserError(
            f"{args.weights} holds a detector with detector.library={built_by.detector.library}; only those with "
            "torchvision can be exported here, so use that library's own export."
        )
    classes = None if args.classes is None else [name.strip() for name in args.classes.split(",")]
    try:
        return load_model(args.weights, config, classes)
    except UserError as error:
        raise UserError(f"{error} To export a backbone alone, give --name.") from error


def test_sets(network: Network, config: DictConfig, weights: str) -> list[Annotations]:
    """The test sets of `config`. Raises `UserError` if the network cannot be scored on them."""
    if network.kind != "detection":
        raise UserError(f"--data is for detectors, and {weights} holds a network for {network.kind}; leave it out.")
    sets = load_sets(config, config.data.test)
    check_detector_classes(sets[0], network.metadata["classes"])
    given, taken = image_channels(config), network.example.shape[1]
    if given != taken:
        raise UserError(f"backbone.in_channels of --data is {given}, but the detector takes {taken} channels.")
    for data in sets:
        check_headers(data, config.data.max_unreadable)
    return sets


def calibration_images(config: DictConfig) -> list[Tensor]:
    """Images of the training sets of `config`, without those that cannot be read."""
    sets = load_sets(config, config.data.train)
    dataset = DetectionDataset(sets, train=False, channels=image_channels(config))
    step = max(1, len(dataset) // CALIBRATION)
    samples = [dataset[k] for k in range(0, len(dataset), step)][:CALIBRATION]
    return [sample[0][None].contiguous() for sample in samples if not isinstance(sample, Unreadable)]


def images_of(folder: Path, network: Network) -> list[Tensor]:
    """The images below a folder as inputs; unreadable ones are reported and left out.

    Raises `UserError` if there are none.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder} {'is not a folder' if folder.exists() else 'does not exist'}.")
    paths = sorted(path for path in folder.rglob("*") if is_image(path.name))
    if not paths:
        raise UserError(f"--images {folder} has no images; looked for {', '.join(sorted(image_suffixes()))}.")
    images, faults = [], []
    for path in paths:
        try:
            image = torch.from_numpy(read_image(path, channels=network.example.shape[1]))
        except UserError as error:
            faults.append(str(error))
        else:
            images.append(like(image.permute(2, 0, 1)[None].contiguous() / 255, network.example))
    if not images:
        raise UserError(f"--images {folder} has no image that can be read: {faults[0]}")
    for fault in faults:
        print(f"warning: {fault}", file=sys.stderr)
    if faults:
        print(f"warning: {len(faults)} of {len(paths)} images of --images are left out", file=sys.stderr)
    return images


def blank(network: Network) -> Tensor:
    return like(torch.full((1, network.example.shape[1], 480, 640), 0.5), network.example)


class Exported(nn.Module):
    """An exported detector in place of an eager one, for the evaluator."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.run, _ = load(path)
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.run(image[None]) for image in images]


def print_metrics(network: Network, path: Path, config: DictConfig, sets: list[Annotations]) -> None:
    """Print the metrics of the eager and the exported detector on the test sets of `config`.

    Both are scored on what the network outputs, whichever detector `config` names, without test-time augmentation.
    """
    detector = {"name": "mask_rcnn" if "masks" in network.outputs else "faster_rcnn"}
    as_exported = {"detector": detector, "evaluation": {"tta_sizes": None, "tta_flip": False}}
    score = scorer(sets, OmegaConf.merge(config, as_exported))
    (before, _), (after, _) = score(network.eager.model.eval()), score(Exported(path).eval())
    for name in before:
        if name.endswith(("/AP", "/AP50")):
            print(f"{name}: {before[name]:.2f} before, {after[name]:.2f} after")
