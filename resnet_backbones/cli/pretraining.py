"""What pretraining is put together from: a config's classifier, its preprocessing, and what its weights file says."""

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf

from .. import distributed
from ..backbones import RandomFrozenWarning, build_backbone
from ..classifiers import Classifier, build_classifier, load_classifier, soft_binary_cross_entropy
from ..data.augmentation import BatchAugmentation, train_transform
from ..data.classification import ClassificationDataset, build_test_loader, build_train_loader
from ..data.imagenet import FileImages, load_images
from ..data.shards import ShardImages
from ..data.views import build_views
from ..errors import UserError
from ..models.compile import compile_backbone
from ..preprocessing import Normalize, Preprocessing, merged_preprocessing

logger = logging.getLogger(__name__)

LOSSES = {"cross_entropy": F.cross_entropy, "bce": soft_binary_cross_entropy}


def backbone_options(config: DictConfig) -> dict:
    """The arguments of `build_classifier` in the `backbone` section."""
    settings = OmegaConf.to_container(config.backbone)
    return {k: v for k, v in settings.items() if v is not None and not k.startswith("fpn_")}


def check_names(config: DictConfig, names: list[str]) -> None:
    """Raise `UserError` where the config's classifier cannot be built on one of the backbones `names`."""
    with torch.device("meta"):
        for name in names:
            build_classifier(num_classes=2, **backbone_options(config) | {"name": name, "weights": None})


def build_for_training(config: DictConfig, classes: list[str]) -> Classifier:
    """The classifier of a config with its loss, and its weights where they are given. Its preprocessing is set later,
    by `set_preprocessing`, because it may need the data. Raises `UserError` where weights do not fit.
    """
    loss = partial(LOSSES[config.loss.name], label_smoothing=config.loss.label_smoothing)
    options = backbone_options(config)
    if config.weights is None:
        model = build_classifier(num_classes=len(classes), loss=loss, **options)
    else:
        model = check_classes(load_trained(config, config.weights), len(classes), classes, config.weights)
        model.loss = loss
    if config.solver.compile != "none":
        compile_backbone(model.backbone, config.solver.compile)
    return model


def load_ensemble(config: DictConfig) -> list[Classifier]:
    """The classifiers to score: that of `weights`, which must have the config's backbone, and those of `ensemble`.

    Raises `UserError` where they tell other classes apart.
    """
    first = load_trained(config, config.weights)
    others = [
        check_classes(load_classifier(source), first.fc.out_features, first.classes, source)
        for source in config.ensemble
    ]
    set_preprocessing(first, resolve_preprocessing(config, first.preprocessing))
    return [first, *others]


def load_trained(config: DictConfig, source: str) -> Classifier:
    """The classifier at `source`, which must be of the config's backbone."""
    options = {k: v for k, v in backbone_options(config).items() if k != "weights"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomFrozenWarning)
        return load_classifier(source, **options)


def check_classes(model: Classifier, num_classes: int, classes: list[str] | None, source: str) -> Classifier:
    """`model`, unless it tells another number of classes apart, or the same ones in another order (`UserError`)."""
    remedy = "to start from its backbone alone, give it as backbone.weights"
    if model.fc.out_features != num_classes:
        raise UserError(f"{source} tells {model.fc.out_features} classes apart, but here are {num_classes}; {remedy}.")
    known = list(model.classes or [])
    if classes is not None and known != list(classes) and sorted(known) == sorted(classes):
        raise UserError(f"{source} has its classes in another order, {', '.join(known[:5])} …; {remedy}.")
    return model


def load_scored_images(config: DictConfig, model: Classifier) -> FileImages | ShardImages:
    """The validation images, labelled in the order of the classes that `model` was trained on.

    Where its weights do not know the images' classes by name, as torchvision's do not know ImageNet's folders, the
    classes are taken in sorted order. Raises `UserError` where there are not as many.
    """
    data = config.data
    images = load_images(data.root, data.val, data.classes)
    if data.classes is None and model.classes is not None and set(images.classes) <= set(model.classes):
        return load_images(data.root, data.val, model.classes)
    check_classes(model, len(images.classes), images.classes, config.weights)
    if model.classes is not None and list(model.classes) != list(images.classes):
        logger.warning("the weights name other classes than %s; both are taken in their order", data.val)
    return images


def train_loader(config: DictConfig, images: FileImages | ShardImages, preprocessing: Preprocessing) -> Callable:
    """`build_train_loader(start=0)` for `fit`."""
    return partial(
        build_train_loader,
        ClassificationDataset(images, train_transform(config.augmentation, preprocessing)),
        config.solver.batch_size,
        num_workers=config.data.num_workers,
        seed=config.seed,
        accumulate=config.solver.accumulate,
        repeats=config.data.repeats,
        max_unreadable=config.data.max_unreadable,
    )


def view_loader(
    config: DictConfig, images: FileImages | ShardImages, preprocessing: Preprocessing, views: str
) -> Iterable:
    """The loader of `score_classifiers` with these `views`."""
    make_views = build_views(views, config.evaluation.scales, preprocessing)
    return build_test_loader(
        ClassificationDataset(images, make_views),
        1 if views == "multi_scale" else config.evaluation.batch_size,
        num_workers=config.data.num_workers,
        max_unreadable=config.data.max_unreadable,
    )


def resolve_preprocessing(config: DictConfig, known: Preprocessing | None) -> Preprocessing:
    """What the network takes: that of its weights, where they are `known`, with the config's sizes.

    Raises `UserError` where the config contradicts the weights.
    """
    given = config.preprocessing
    merged = merged_preprocessing(known, given.image_mean, given.image_std, "preprocessing")
    size = given.size or merged.size or 224
    resize = given.resize or (merged.resize if given.size is None else None) or max(256, size)
    if size > resize:
        raise UserError(f"preprocessing.size is {size}; it must be at most preprocessing.resize, {resize}.")
    return replace(merged, size=size, resize=resize, interpolation=given.interpolation or merged.interpolation)


def set_preprocessing(model: Classifier, preprocessing: Preprocessing, augmentation: DictConfig | None = None) -> None:
    """Make `model` do `preprocessing` to its images and, in training, what `augmentation` does to a batch."""
    model.preprocessing, model.prepare = preprocessing, Normalize(preprocessing)
    model.backbone.preprocessing = preprocessing
    if augmentation is not None:
        _, image_std = preprocessing.as_rgb()
        model.augment = BatchAugmentation(augmentation, model.fc.out_features, image_std)


def with_mean_image(preprocessing: Preprocessing, loader: Iterable) -> Preprocessing:
    """`preprocessing` with the mean of all images of a loader of single views in the place of its mean."""
    size = preprocessing.size
    total, count = torch.zeros(3, size, size, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for views, labels, _ in loader:
        total += torch.cat([stack for (stack,) in views]).double().sum(0) / 255
        count += len(labels)
    return replace(preprocessing, mean=(distributed.total(total) / distributed.total(count)).tolist())


def describe(model: Classifier, classes: list[str], config: DictConfig) -> dict:
    """What a weights file says of `model`, but for its metrics (see `weights.save_safetensors`)."""
    architecture = model.backbone.architecture
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomFrozenWarning)
        shapes = build_backbone(architecture["name"], **architecture["options"]).output_shape()
    return {
        "architecture": architecture,
        "features": {name: shape._asdict() for name, shape in shapes.items()},
        "preprocessing": asdict(model.preprocessing),
        "classes": classes,
        "recipe": OmegaConf.to_container(config, resolve=True),
    }
