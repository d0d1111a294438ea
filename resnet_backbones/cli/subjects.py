"""What `analyze` studies: a classifier or detector, trained or at its initialization, with data to run it on."""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..analysis.truths import setting
from ..backbones import allow_random_frozen
from ..classifiers import architecture_of, build_classifier, load_classifier
from ..config import Config, load_config
from ..data.classification import ClassificationDataset
from ..data.dataset import DetectionDataset
from ..data.imagenet import load_images
from ..data.loader import data_loader
from ..data.unreadable import ReadableBatches
from ..data.views import build_views
from ..detectors import build_detector, load_detector, stated_config
from ..errors import UserError
from ..evaluation.classification import score_classifiers
from ..inference.predictor import find_device, for_inference
from ..models.classifier import Classifier
from ..preprocessing import Normalize, Preprocessing
from ..weights import read_file
from .training import load_sets, scorer

Batches = Callable[[int | None, bool], Iterator[tuple]]
BATCH_SIZES = {"error": 128, "bbox/AP": 4}  # by the metric, where --batch-size is not given


class Subject(NamedTuple):
    """A network with what a study does to it.

    Attributes:
        name: the architecture, such as "cifar_resnet56" or "faster_rcnn of resnet18_fpn".
        source: the weights file, "" at the initialization.
        model: on its device.
        batches: `batches(count, training)`: batches of images drawn at random, or of all, and targets, on the device.
        score: `score(model)`: its metrics on all images, in percent.
        metric: the one that matters, "error" or "bbox/AP".
    """

    name: str
    source: str
    model: nn.Module
    batches: Batches
    score: Callable[[nn.Module], dict[str, float]]
    metric: str

    @property
    def label(self) -> str:
        return f"{self.name}, {self.source or 'untrained'}"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def subjects(args: argparse.Namespace, options: dict, untrained: bool = False) -> Iterator[Subject]:
    """The subjects that --weights and --name stand for, one after the other.

    A --name for each of --weights says the architecture where the file does not. `untrained` adds to each file the
    same network at its initialization. Raises `UserError` for what cannot be loaded or does not fit the data.
    """
    files, names = args.weights, args.name
    if not files and not names:
        raise UserError("Give --weights FILE, or --name NAME for an untrained network.")
    if files and names and len(files) != len(names):
        raise UserError(f"--name has {len(names)} names for {len(files)} of --weights; give one for each, or none.")
    for source, name in zip(files or [None] * len(names), names or [None] * len(files), strict=True):
        for file in (None, source) if untrained and source is not None else (source,):
            torch.manual_seed(args.seed)
            yield subject(args, file, source, name, options)


def subject(args: argparse.Namespace, file: str | None, source: str | None, name: str | None, options: dict) -> Subject:
    """The network `name`, or that of `source`, with the weights of `file`."""
    metadata = {} if source is None else read_file(source).metadata
    device = find_device(args.device)
    if "config" in metadata and name is None:
        return detector_subject(args, file, source, metadata, device)
    if source is not None and name is None and "architecture" not in metadata:
        raise UserError(f"{source} does not say which network it holds; give its backbone with --name.")
    return classifier_subject(args, file, source, name, options, device)


def classifier_subject(
    args: argparse.Namespace,
    file: str | None,
    source: str | None,
    name: str | None,
    options: dict,
    device: torch.device,
) -> Subject:
    if is_config(args.data):
        raise UserError(f"--data is {args.data}; for a classifier give the folder of its images.")
    if source is not None and name is None:
        name, stated = architecture_of(read_file(source), source)
        options = stated | options
    with allow_random_frozen():
        if file is not None:
            model = load_classifier(file, name, **options)
            images = load_images(args.data, args.split or "val", known_classes(model, args))
        else:
            images = load_images(args.data, args.split or "val")
            model = build_classifier(name, len(images.classes), **options)
    if model.fc.out_features != len(images.classes):
        raise UserError(f"{file} has {model.fc.out_features} classes, but {args.data} has {len(images.classes)}.")
    preprocessing = complete(model.preprocessing, name, options.get("in_channels", 3))
    model.prepare = Normalize(preprocessing)
    views = build_views("center", (), preprocessing)
    size = args.batch_size or BATCH_SIZES["error"]
    dataset = ClassificationDataset(images, views, len(preprocessing.std))

    def batches(count: int | None, training: bool) -> Iterator[tuple]:
        for stacks, targets in chosen(dataset, count, size, args.num_workers, args.seed):
            yield torch.cat([stack for (stack,) in stacks]).to(device), {"labels": targets["labels"].to(device)}

    to_score = chosen(dataset, args.images, size, args.num_workers, args.seed)

    def score(net: nn.Module) -> dict[str, float]:
        metrics = score_classifiers([net], to_score)
        return {"error": 100 - metrics["top1"], "top5_error": 100 - metrics["top5"]}

    return Subject(name, file or "", model.to(device), batches, score, "error")


def known_classes(model: Classifier, args: argparse.Namespace) -> list[str] | None:
    """The classes of the weights in their order, if the folders of the data are among them; else None."""
    found = load_images(args.data, args.split or "val").classes
    known = list(model.classes or [])
    return known if set(found) <= set(known) else None


def complete(known: Preprocessing | None, name: str, channels: int) -> Preprocessing:
    """`known`, by default ImageNet's mean and std, at the size that `name` was published for where it has none."""
    if known is None:
        known = Preprocessing() if channels == 3 else Preprocessing((0.5,) * channels, (0.25,) * channels)
    (size, _), _ = setting(name)
    default = {"size": size, "resize": 32 if size == 32 else 256}
    return known if known.size else replace(known, **default)


def detector_subject(
    args: argparse.Namespace, file: str | None, source: str, metadata: dict, device: torch.device
) -> Subject:
    if args.study == "lesions" and args.images is not None:
        raise UserError("A detector is scored on all images of --data; leave --images out.")
    sections, classes = stated_config(metadata, source), list(metadata["classes"])
    if file is not None:
        model = load_detector(file)
    else:
        bare = OmegaConf.merge(sections, {"weights": None, "backbone": {"weights": None}})
        with allow_random_frozen():
            model = build_detector(bare, len(classes)).eval()
    config = data_config(args, classes)
    sets = load_sets(config, config.data.test)
    if sets[0].classes != classes:
        names = ", ".join(sets[0].classes), ", ".join(classes)
        raise UserError(f"{sets[0].name} of --data has the classes {names[0]}, but the detector has {names[1]}.")
    size = args.batch_size or BATCH_SIZES["bbox/AP"]
    masks, channels = sections.detector.name == "mask_rcnn", len(model.transform.preprocessing.std)
    config = OmegaConf.merge(config, {"detector": sections.detector, "backbone": {"in_channels": channels}})

    def batches(count: int | None, training: bool) -> Iterator[tuple]:
        dataset = DetectionDataset(sets, train=training, masks=masks and training, channels=channels, flip=0.0)
        for images, targets in chosen(dataset, count, size, args.num_workers, args.seed):
            moved = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets]
            yield [image.to(device) for image in images], moved

    measure = scorer(sets, config)
    name = f"{sections.detector.name} of {sections.backbone.name}"
    return Subject(name, file or "", model.to(device), batches, lambda net: measure(net)[0], "bbox/AP")


def data_config(args: argparse.Namespace, classes: Sequence[str]) -> DictConfig:
    """The config with the test sets of --data: a YAML, or a folder of images in one of the known formats."""
    common = {"data": {"num_workers": args.num_workers}, "evaluation": {"tta_sizes": None, "tta_flip": False}}
    if is_config(args.data):
        return OmegaConf.merge(load_config(args.data), common)
    given = {"root": args.data, "split": args.split, "classes": list(classes)}
    data = {"datasets": {"data": given}, "data": {"test": ["data"]}}
    return OmegaConf.merge(OmegaConf.structured(Config), data, common)


def is_config(data: str) -> bool:
    return Path(data).suffix in (".yaml", ".yml")


def chosen(dataset: Dataset, count: int | None, batch_size: int, num_workers: int, seed: int) -> ReadableBatches:
    """Batches of `count` items drawn with `seed`, or of all. Raises `UserError` if an image cannot be read."""
    indices = list(range(len(dataset)))
    if count is not None and count < len(indices):
        indices = sorted(random.Random(seed).sample(indices, count))
    return ReadableBatches(data_loader(dataset, num_workers, sampler=indices, batch_size=batch_size), 0)


def inference_copy(found: Subject) -> nn.Module:
    """The model for scoring: fused, and faster."""
    return for_inference(found.model, found.device)
