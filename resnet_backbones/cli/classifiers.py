"""The classifier of a config: built, or loaded with its classes and preprocessing."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..backbones import allow_random_frozen
from ..classifiers import build_classifier, load_classifier
from ..config import image_channels
from ..data.augmentation import BatchAugmentation
from ..data.imagenet import FileImages, load_images
from ..data.shards import ShardImages
from ..errors import UserError
from ..models.classifier import Classifier, soft_binary_cross_entropy
from ..preprocessing import Normalize, Preprocessing, merged_preprocessing
from ..weights import metadata_of

logger = logging.getLogger(__name__)

LOSSES = {"cross_entropy": F.cross_entropy, "bce": soft_binary_cross_entropy}


def backbone_options(config: DictConfig) -> dict:
    """The arguments of `build_classifier` in the `backbone` section."""
    options = OmegaConf.to_container(config.backbone)
    return {k: v for k, v in options.items() if v is not None and not k.startswith("fpn_")}


def build_for_training(config: DictConfig, classes: list[str]) -> Classifier:
    """The classifier of a config with its loss, and with `weights` if they are given.

    From weights for another number of classes, all layers but the last are loaded. The preprocessing may depend on the
    data; `set_preprocessing` sets it. Raises `UserError` for weights that do not fit.
    """
    loss = partial(LOSSES[config.loss.name], label_smoothing=config.loss.label_smoothing)
    if config.weights is None:
        model = build_classifier(num_classes=len(classes), loss=loss, **backbone_options(config))
    else:
        model = load_trained(config, config.weights)
        if model.fc.out_features != len(classes):
            counts = config.weights, model.fc.out_features, len(classes)
            logger.info("%s has %d classes, but the data has %d; fc keeps its random weights", *counts)
            model.fc, model.classes = nn.Linear(model.fc.in_features, len(classes)), None
        check_order(model, classes, config.weights)
        model.loss = loss
    return model


def load_ensemble(config: DictConfig) -> list[Classifier]:
    """The classifier `weights`, which must have the config's backbone, and those of `ensemble`.

    Raises `UserError` if their classes differ.
    """
    first = load_trained(config, config.weights)
    others = [
        check_classes(load_classifier(source), first.fc.out_features, first.classes, source)
        for source in config.ensemble
    ]
    if first.preprocessing is None and config.preprocessing.per_pixel_mean and config.preprocessing.image_mean is None:
        logger.warning(
            "%s has no mean image for preprocessing.per_pixel_mean and does not state its mean and std; using "
            "ImageNet's. For others, set preprocessing.image_mean and image_std.",
            config.weights,
        )
        config = OmegaConf.merge(config, {"preprocessing": {"image_std": None}})
    set_preprocessing(first, resolve_preprocessing(config, first.preprocessing))
    return [first, *others]


def load_trained(config: DictConfig, source: str) -> Classifier:
    """The classifier at `source`, which must have the config's backbone."""
    options = {k: v for k, v in backbone_options(config).items() if k != "weights"}
    with allow_random_frozen():
        return load_classifier(source, **options)


def check_classes(model: Classifier, num_classes: int, classes: Sequence[str] | None, source: str) -> Classifier:
    """`model`. Raises `UserError` if it has another number of classes, or the same ones in another order."""
    if model.fc.out_features != num_classes:
        count = f"{model.fc.out_features} class{'es' if model.fc.out_features > 1 else ''}"
        raise UserError(f"{source} has {count}, not {num_classes} as expected here.")
    check_order(model, classes, source)
    return model


def check_order(model: Classifier, classes: Sequence[str] | None, source: str) -> None:
    """Raise `UserError` if `model` has the same `classes` in another order."""
    known = list(model.classes or [])
    if classes is not None and known != list(classes) and sorted(known) == sorted(classes):
        remedy = "give data.classes in that order, or the file as backbone.weights"
        raise UserError(f"{source} has its classes in another order, {', '.join(known[:5])} …; {remedy}.")


def load_test_images(
    root: str, split: str, model: Classifier, source: str, classes: Sequence[str] | None = None
) -> FileImages | ShardImages:
    """The images of a split, labeled in the order of the classes that `model`, loaded from `source`, was trained on.

    If class names differ, as torchvision's do from ImageNet's folders, the sorted folders are matched to the classes
    by position. Raises `UserError` if the number of classes differs as well.
    """
    images = load_images(root, split, classes)
    if classes is None and model.classes is not None and set(images.classes) <= set(model.classes):
        return load_images(root, split, model.classes)
    if model.fc.out_features != len(images.classes):
        raise UserError(f"{source} has {model.fc.out_features} classes, but {root} has {len(images.classes)}.")
    check_order(model, images.classes, source)
    if model.classes is not None and list(model.classes) != list(images.classes):
        logger.warning("the class names of %s differ from those of %s; matched by position", source, root)
    return images


def resolve_preprocessing(config: DictConfig, known: Preprocessing | None) -> Preprocessing:
    """The network's preprocessing: that of its weights if it is `known`, with the sizes of the config.

    Raises `UserError` if the config contradicts the weights.
    """
    given = config.preprocessing
    channels = image_channels(config)
    merged = merged_preprocessing(known, given.image_mean, given.image_std, "preprocessing", channels)
    size = given.size or merged.size or 224
    resize = given.resize or (merged.resize if given.size is None else None) or max(256, size)
    if size > resize:
        raise UserError(f"preprocessing.size is {size}; it must be at most preprocessing.resize, {resize}.")
    return replace(merged, size=size, resize=resize, interpolation=given.interpolation or merged.interpolation)


def set_preprocessing(model: Classifier, preprocessing: Preprocessing, augmentation: DictConfig | None = None) -> None:
    """Make `model` preprocess its images this way and, in training, augment its batches."""
    model.preprocessing, model.prepare = preprocessing, Normalize(preprocessing)
    model.backbone.preprocessing = preprocessing
    if augmentation is not None:
        _, image_std = preprocessing.as_rgb()
        model.augment = BatchAugmentation(augmentation, model.fc.out_features, image_std)


def describe(model: Classifier, classes: list[str], config: DictConfig) -> dict:
    """The metadata of a weights file except the metrics (see `weights.save_safetensors`)."""
    return metadata_of(model) | {"classes": classes, "recipe": OmegaConf.to_container(config, resolve=True)}
