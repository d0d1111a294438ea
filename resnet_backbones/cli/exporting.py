"""The job of `export`: load what a checkpoint holds, export and verify it, and score it before and after."""

import argparse
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ..backbones import build_backbone
from ..classifiers import load_classifier
from ..config import image_channels, load_config
from ..data.dataset import DetectionDataset
from ..data.images import read_image
from ..detectors import load_detector
from ..errors import UserError
from ..export import export, load, network_of
from ..export.network import Network
from ..export.verification import like
from ..weights import read_file
from .training import load_sets, scorer

CALIBRATION = 100  # images, evenly chosen
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def export_weights(args: argparse.Namespace) -> None:
    """Export `args.weights` and print what was written, how far it is from the model, and the AP of both."""
    model = load_model(args)
    network = network_of(model)
    config = None if args.data is None else load_config(args.data)
    if config is not None and network.kind != "detection":
        raise UserError(
            f"--data is for detectors, and {args.weights} holds a network for {network.kind}; leave it out."
        )
    calibration = calibration_images(config) if args.precision == "int8" else ()
    inputs = None if args.images is None else [*images_of(args.images, network), blank(network)]
    difference = export(network, args.output, args.format, args.precision, inputs, calibration)
    print(f"compared on {difference}" if difference else f"{args.precision}: not compared, only run")
    if network.kind == "detection" and difference and not difference.found:
        print("  nothing is found in them, so no boxes were compared; give images with objects: --images DIR")
    if config is not None:
        print_metrics(network, args.output, config, model.classes)
    shape = ", ".join(network.dynamic.get(k, str(size)) for k, size in enumerate(network.example.shape))
    kind = str(network.example.dtype).removeprefix("torch.")
    size = sum(file.stat().st_size for file in {args.output, args.output.with_suffix(".bin")} if file.is_file())
    print(f"{args.output}: {args.precision}, {size / 1e6:.1f} MB")
    print(f"  {network.input}: {kind} ({shape}); gives {', '.join(network.outputs)}")


def load_model(args: argparse.Namespace) -> nn.Module:
    """The backbone `args.name`, or the detector or classifier that `args.weights` holds."""
    if args.name is not None:
        return build_backbone(args.name, weights=args.weights)
    metadata = read_file(args.weights).metadata
    config = None if args.config is None else load_config(args.config)
    built_by = metadata.get("config", {}) if config is None else config
    if "detector" in built_by:
        if built_by["detector"]["library"] != "torchvision":
            raise UserError(
                f"{args.weights} holds a detector of detector.library={built_by['detector']['library']}; only those "
                "of torchvision can be exported, and for others their library has a way of its own."
            )
        return load_detector(args.weights, config, args.classes)
    try:
        return load_classifier(args.weights)
    except UserError as error:
        raise UserError(
            f"{args.weights} names no detector and holds no classifier: give --config YAML of its detector, or --name "
            f"of the backbone to export alone. {error}"
        ) from error


def calibration_images(config: DictConfig) -> list[Tensor]:
    dataset = test_images(config, config.data.train)
    step = max(1, len(dataset) // CALIBRATION)
    return [dataset[k][0][None].contiguous() for k in range(0, len(dataset), step)][:CALIBRATION]


def test_images(config: DictConfig, names: list[str]) -> DetectionDataset:
    return DetectionDataset(load_sets(config, names), train=False, channels=image_channels(config))


def images_of(folder: Path, network: Network) -> list[Tensor]:
    """The images below a folder as inputs. Raises `UserError` where there are none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"--images {folder} has no images; looked for {', '.join(SUFFIXES)}.")
    images = [read_image(path, channels=network.example.shape[1]) for path in paths]
    return [
        like(torch.from_numpy(image).permute(2, 0, 1)[None].contiguous() / 255, network.example) for image in images
    ]


def blank(network: Network) -> Tensor:
    return like(torch.full((1, network.example.shape[1], 480, 640), 0.5), network.example)


class Exported(nn.Module):
    """An exported detector in the place of an eager one, for the evaluator."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.run, _ = load(path)
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.run(image[None].contiguous()) for image in images]


def print_metrics(network: Network, path: Path, config: DictConfig, classes: list[str]) -> None:
    """The metrics of the eager and of the exported detector on the test sets of `config`."""
    sets = load_sets(config, config.data.test)
    if sets[0].classes != classes:
        raise UserError(
            f"{sets[0].name} of --data has the classes {', '.join(sets[0].classes)}, but the detector has "
            f"{', '.join(classes)}."
        )
    score = scorer(sets, config)
    (before, _), (after, _) = score(network.eager.model.eval()), score(Exported(path).eval())
    for name in before:
        if name.endswith(("/AP", "/AP50")):
            print(f"{name}: {before[name]:.2f} before, {after[name]:.2f} after")
