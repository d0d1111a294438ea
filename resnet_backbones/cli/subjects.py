"""What `analyze` studies: a classifier or detector, trained or at initialization, with data to run it on."""

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import Dataset

from ..analysis.truths import setting
from ..backbones import allow_random_frozen, valid_options
from ..classifiers import build_classifier, load_classifier
from ..config import Config, load_config
from ..data.classification import ClassificationDataset
from ..data.dataset import DetectionDataset
from ..data.imagenet import load_images
from ..data.loader import data_loader
from ..data.unreadable import ReadableBatches
from ..data.views import build_views
from ..detectors import build_detector, load_detector, stated_config
from ..errors import UserError, reason, unknown
from ..evaluation.classification import score_classifiers
from ..inference.predictor import find_device, for_inference
from ..models.classifier import Classifier
from ..preprocessing import Normalize, Preprocessing, input_channels
from ..training.loop import to_device
from ..weights import read_file
from .classifiers import load_test_images
from .training import check_detector_classes, load_sets, scorer

BATCH_SIZES = {"error": 128, "bbox/AP": 4}  # by metric, unless --batch-size is given


class Subject(NamedTuple):
    """A network with what a study needs to run it.

    Attributes:
        name: the architecture, such as "cifar_resnet56 shortcut=B" or "faster_rcnn of resnet18_fpn".
        source: the weights file, "" at initialization.
        model: on its device.
        batches: `batches(count, training)`: batches of `count` random images, or of all, in random order, and their
            targets, on the device. In `training` the last one is dropped if it is smaller than the first.
        count: `count(images)`: the number of `batches`.
        score: `score(model)`: its metrics in percent on --images, or on all.
        metric: the main one, "error" or "bbox/AP".
    """

    name: str
    source: str
    model: nn.Module
    batches: Callable[[int | None, bool], Iterator[tuple]]
    count: Callable[[int | None], int]
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

    A --name for each of --weights gives the architecture if the file does not state it. `untrained` adds to each file
    the same network at initialization. Raises `UserError` for what cannot be loaded or does not fit the data.
    """
    files, names = args.weights, args.name
    if not files and not names:
        raise UserError("Give --weights FILE, or --name NAME for an untrained network.")
    if files and names and len(files) != len(names):
        raise UserError(f"--name has {len(names)} for the {len(files)} of --weights; give one for each, or none.")
    for source, name in zip(files or [None] * len(names), names or [None] * len(files), strict=True):
        for trained in (False, True) if untrained and source is not None else (source is not None,):
            torch.manual_seed(args.seed)
            yield subject(args, source, name, options, trained)


def subject(args: argparse.Namespace, source: str | None, name: str | None, options: dict, trained: bool) -> Subject:
    """The network of the file `source`, or `name`; with the weights of the file if it is to be `trained`."""
    metadata = {} if source is None else read_file(source).metadata
    if "config" in metadata and name is None:
        if options:
            raise UserError(f"{source} holds a detector, which says how it is built; leave {', '.join(options)} out.")
        return detector_subject(args, source, metadata, trained)
    if source is not None and name is None and "architecture" not in metadata:
        raise UserError(f"{source} does not say which network it holds; give its backbone with --name.")
    return classifier_subject(args, source, name, options, trained)


def classifier_subject(
    args: argparse.Namespace, source: str | None, name: str | None, options: dict, trained: bool
) -> Subject:
    if is_config(args.data):
        raise UserError(f"--data is {args.data}; for a classifier give the folder of its images.")
    for option in options:
        if name is not None and option not in (valid := valid_options(name) | {"norm", "freeze_at"}):
            raise UserError(unknown(f"option of {name}", option, valid))
    split = args.split or "val"
    if source is None:
        images = load_images(args.data, split)
        build = partial(build_classifier, name, len(images.classes), **options)
    else:
        build = partial(load_classifier, source, name, **options)
    try:
        with allow_random_frozen():
            model = build()
            if source is not None and not trained:
                model = initialized(model)
    except UserError:
        raise
    except (TypeError, RuntimeError, ValueError) as error:  # from torch, for impossible values
        raise UserError(f"{name} cannot be built with {options}: {reason(error)}") from error
    check_finite(model, source or name)
    if source is not None:
        images = load_test_images(args.data, split, model, source)
    known = model.backbone.architecture
    channels = input_channels(model.backbone)
    preprocessing = complete(model.preprocessing, known["name"], channels)
    model.prepare = Normalize(preprocessing)
    dataset = ClassificationDataset(images, build_views("center", (), preprocessing), len(preprocessing.std))
    size, device = args.batch_size or BATCH_SIZES["error"], find_device(args.device)

    def batches(count: int | None, training: bool) -> Iterator[tuple]:
        for stacks, targets in chosen(dataset, count, size, args, training):
            yield torch.cat([stack for (stack,) in stacks]).to(device), {"labels": targets["labels"].to(device)}

    to_score = chosen(dataset, args.images, size, args)

    def score(net: nn.Module) -> dict[str, float]:
        metrics = score_classifiers([net], to_score)
        return {"error": 100 - metrics["top1"], "top5_error": 100 - metrics["top5"]}

    count = partial(number_of_batches, len(dataset), size)
    changed = {key: value for key, value in known["options"].items() if (key, value) != ("norm", "BN")}
    label = " ".join([known["name"], *(f"{key}={value}" for key, value in changed.items())])
    return Subject(label, source if trained else "", model.to(device), batches, count, score, "error")


def initialized(model: Classifier) -> Classifier:
    """The same network at initialization."""
    known = model.backbone.architecture
    twin = build_classifier(known["name"], model.fc.out_features, **known["options"])
    twin.classes, twin.preprocessing = model.classes, model.preprocessing
    return twin


def check_finite(model: nn.Module, what: str) -> None:
    """Raise `UserError` if a weight is infinite or NaN, as after a run that diverged."""
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{what}: {name} has values that are not finite; nothing can be measured with it.")


def complete(known: Preprocessing | None, name: str, channels: int) -> Preprocessing:
    """`known`, by default ImageNet's mean and std, with the size that `name` was published for if it has none."""
    if known is None:
        known = Preprocessing() if channels == 3 else Preprocessing((0.5,) * channels, (0.25,) * channels)
    (size, _), _ = setting(name)
    default = {"size": size, "resize": 32 if size == 32 else 256}
    return known if known.size else replace(known, **default)


def detector_subject(args: argparse.Namespace, source: str, metadata: dict, trained: bool) -> Subject:
    if args.study == "lesions" and args.images is not None:
        raise UserError("A detector is scored on all images of --data; leave --images out.")
    sections, classes = stated_config(metadata, source), list(metadata["classes"])
    if trained:
        model = load_detector(source)
    else:
        bare = OmegaConf.merge(sections, {"weights": None, "backbone": {"weights": None}})
        with allow_random_frozen():
            model = build_detector(bare, len(classes)).eval()
    check_finite(model, source)
    config = data_config(args, classes)
    sets = load_sets(config, config.data.test)
    check_detector_classes(sets[0], classes)
    masks, channels = sections.detector.name == "mask_rcnn", len(model.transform.preprocessing.std)
    config = OmegaConf.merge(config, {"detector": sections.detector, "backbone": {"in_channels": channels}})
    size, device = args.batch_size or BATCH_SIZES["bbox/AP"], find_device(args.device)

    def dataset(training: bool) -> DetectionDataset:
        return DetectionDataset(sets, train=training, masks=masks and training, channels=channels, flip=0.0)

    def batches(count: int | None, training: bool) -> Iterator[tuple]:
        for images, targets in chosen(dataset(training), count, size, args, training):
            yield to_device(images, device), to_device(targets, device)

    measure = scorer(sets, config)
    name = f"{sections.detector.name} of {sections.backbone.name}"
    count = partial(number_of_batches, sum(map(len, sets)), size)
    source = source if trained else ""
    return Subject(name, source, model.to(device), batches, count, lambda net: measure(net)[0], "bbox/AP")


def data_config(args: argparse.Namespace, classes: Sequence[str]) -> DictConfig:
    """The config with the test sets of --data: a YAML, or a dataset folder in one of the known formats."""
    common = {"data": {"num_workers": args.num_workers}, "evaluation": {"tta_sizes": None, "tta_flip": False}}
    if is_config(args.data):
        return OmegaConf.merge(load_config(args.data), common)
    given = {"root": args.data, "split": args.split, "classes": list(classes)}
    data = {"datasets": {"data": given}, "data": {"test": ["data"]}}
    return OmegaConf.merge(OmegaConf.structured(Config), data, common)


def is_config(data: str) -> bool:
    return Path(data).suffix in (".yaml", ".yml")


def chosen(
    dataset: Dataset, count: int | None, batch_size: int, args: argparse.Namespace, training: bool = False
) -> ReadableBatches:
    """Batches of `count` items, or of all, in an order drawn with --seed; in `training` without a smaller last one."""
    count = min(count or len(dataset), len(dataset))
    indices = random.Random(args.seed).sample(range(len(dataset)), count)
    options = {"batch_size": batch_size, "drop_last": training and count > batch_size}
    return ReadableBatches(data_loader(dataset, args.num_workers, sampler=indices, **options), 0)


def number_of_batches(images: int, batch_size: int, count: int | None) -> int:
    return math.ceil(min(count or images, images) / batch_size)


def inference_copy(found: Subject) -> nn.Module:
    """The model for scoring: fused, and faster."""
    return for_inference(found.model, found.device)
