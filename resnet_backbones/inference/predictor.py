"""A trained model on images of any form: `Predictor("best.pt")(image)`."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from numbers import Integral, Real

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ..classifiers import load_classifier
from ..detectors import load_detector
from ..errors import UserError, reason, unknown
from ..models.classifier import Classifier
from ..models.fuse import fuse
from ..preprocessing import input_channels
from ..weights import read_file
from .classifying import center_views, classify
from .detecting import detect, score_thresholds
from .detections import Classification, Detections
from .images import as_tensor

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SLOW_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)  # in channels_last on the CPU


class Predictor:
    """A detector or classifier from its checkpoint, fused and in evaluation mode.

    Args:
        source: a checkpoint of `resnet-backbones train`, or a `model.safetensors` of `pretrain`; a path or URL.
        config: of the detector, `load_config("my.yaml")` or its `backbone` and `detector` as dicts, needed if the
            checkpoint does not say how it is built.
        classes: their names in label order, needed if the checkpoint does not have them.
        device: such as "cpu" or "cuda:1"; by default the GPU if there is one.
        amp: "none", or "bf16" or "fp16" for mixed precision.
        score_threshold: detections below it are left out; one number, or a dict from names of classes, with 0.05 for
            the others. The detector's own `box_score_thresh`, 0.05 by default, is applied first.
        tile: the side in pixels of the tiles that larger images are cut into; None takes each image whole. A tile is
            resized like an image, so one of the size of the training images shows objects at their training scale.
        overlap: of neighboring tiles, as a fraction of `tile`; objects up to that size are whole in some tile.
        batch_size: images, or tiles, that go through the network together. Only those of one size do, since padding
            would change detections.

    A call changes no state, so threads may share a predictor. Raises `UserError` for what is missing from the
    checkpoint, naming the argument that gives it, and for invalid values.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        *,
        config: DictConfig | dict | None = None,
        classes: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        amp: str = "none",
        score_threshold: float | dict[str, float] = 0.05,
        tile: int | None = None,
        overlap: float = 0.2,
        batch_size: int = 4,
    ) -> None:
        if amp not in AMP_DTYPES:
            raise UserError(unknown("amp", amp, AMP_DTYPES))
        if tile is not None and not (isinstance(tile, Integral) and tile >= 1):
            raise UserError(f"tile is {tile!r}; it must be at least 1 pixel.")
        if not (isinstance(overlap, Real) and 0 <= overlap < 1):
            raise UserError(f"overlap is {overlap!r}; it must be at least 0 and less than 1, a fraction of the tile.")
        if not (isinstance(batch_size, Integral) and batch_size >= 1):
            raise UserError(f"batch_size is {batch_size!r}; it must be at least 1.")
        self.tile, self.overlap, self.batch_size, self.amp = tile, overlap, batch_size, amp
        self.device = find_device(device)
        model = load_model(source, config, classes)
        self.is_detector = not isinstance(model, Classifier)
        if not self.is_detector and model.preprocessing is None:
            raise UserError(
                f"{source} does not say how images are normalized for it; `resnet-backbones convert {source} OUT --to "
                "resnet_backbones --source-order RGB` adds ImageNet's mean and standard deviation."
            )
        self.classes: list[str] = list(model.classes)
        self.thresholds = score_thresholds(score_threshold, self.classes)
        if self.is_detector:
            self.channels = len(model.transform.preprocessing.std)
            model.transform.paste_masks = False
        elif tile is not None:
            raise UserError(f"tile is {tile}, but {source} is a classifier, which takes an image whole.")
        else:
            self.views, self.channels = center_views(model), input_channels(model.backbone)
        self.model = for_inference(model, self.device)

    def __call__(self, image: object) -> Detections | Classification | list:
        """The `Detections` of a detector or the `Classification` of a classifier; for a list of images, a list of them.

        Args:
            image: a path or URL, a PIL image, an array (H, W, C) of uint8, or a tensor (C, H, W), uint8 or float in
                [0, 1]; three channels are RGB. Boxes are in pixels of the image as given, those of a file in
                pixels of the upright image.

        Raises `UserError` for what is not an image.
        """
        if not isinstance(image, (list, tuple)):
            return self._predict([image])[0]
        return self._predict(image)

    def _predict(self, images: Sequence) -> list:
        tensors = [as_tensor(image, self.channels, self.tile is not None) for image in images]
        if not self.is_detector:
            return classify(self.run, tensors, self.views, self.classes)
        return detect(self.run, tensors, self.classes, self.thresholds, self.tile, self.overlap)

    @torch.inference_mode()
    def run(self, images: Sequence[Tensor]) -> Iterator[tuple[int, dict | Tensor]]:
        """The model's output for each image, with its index, in any order; images of one size are batched."""
        groups = defaultdict(list)
        for k, image in enumerate(images):
            groups[image.shape].append(k)
        dtype = AMP_DTYPES[self.amp]
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                members = group[start : start + self.batch_size]
                batch = [images[k].to(self.device) for k in members]
                with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                    outputs = self.model(batch if self.is_detector else torch.stack(batch))
                yield from zip(members, outputs, strict=True)


def load_model(source: str | os.PathLike, config: DictConfig | dict | None, classes: Sequence[str] | None) -> nn.Module:
    """The detector or classifier at `source`, with its `classes`. Raises `UserError` saying what has to be given."""
    source, classes = str(source), None if classes is None else class_names(classes)
    metadata = read_file(source).metadata
    if config is not None or "config" in metadata:
        return load_detector(source, config, classes)
    if "architecture" not in metadata:
        raise UserError(
            f"{source} does not say which model it holds. Of a detector, give the YAML that it was trained with "
            "(config) and the names of its classes in label order (classes). To a classifier's file, `resnet-backbones "
            "convert IN OUT --to resnet_backbones --name NAME --source-order RGB` adds what is missing."
        )
    try:
        model = load_classifier(source).eval()
    except UserError as error:
        raise UserError(
            f"{source} cannot be loaded as a classifier and does not say how a detector is built; for a detector, "
            f"give the YAML that it was trained with (config). {error}"
        ) from error
    model.classes = classes or model.classes or [str(k) for k in range(model.fc.out_features)]
    if len(model.classes) != model.fc.out_features:
        raise UserError(f"{source} has {model.fc.out_features} classes, but {len(model.classes)} names are given.")
    return model


def class_names(given: Sequence[str]) -> list[str]:
    """`given` as a list. Raises `UserError` for what is not a list of names, and for empty and repeated names."""
    names = [] if isinstance(given, str) else list(given)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"classes is {given!r}; it must be a list of names, none of them empty.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"classes has {twice[0]!r} more than once; give each class a name of its own.")
    return names


def find_device(device: str | torch.device | None) -> torch.device:
    """The device of this name, by default the GPU if there is one. Raises `UserError` if it is not available."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).item()
    except Exception as error:  # torch raises another kind for each device
        raise UserError(f"device {device} cannot be used here: {reason(error)}") from error
    return found


def for_inference(model: nn.Module, device: torch.device) -> nn.Module:
    """A fused copy on `device`, in the faster memory format."""
    fused = fuse(model).to(device).requires_grad_(False)
    if device.type == "cpu" and not any(isinstance(module, SLOW_NORMS) for module in fused.modules()):
        fused = fused.to(memory_format=torch.channels_last)
    return fused
