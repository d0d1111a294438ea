"""From a classifier's logits to the most probable classes."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from ..data.views import Views, build_views
from ..models.classifier import Classifier
from .detections import Classification

BEST = 5  # classes


def center_views(model: Classifier) -> Views:
    """The center crop that `model` is evaluated on; 224 pixels of an image resized to 256 if it does not say."""
    known = model.preprocessing
    size = known.size or 224
    return build_views("center", [], replace(known, size=size, resize=known.resize or max(256, size)))


def classify(
    run: Callable[[list[Tensor]], Iterable[tuple[int, Tensor]]], images: list[Tensor], views: Views, classes: list[str]
) -> list[Classification]:
    """The five most probable classes of each of `images` (C, H, W); `run` as in `Predictor.run`."""
    found = {}
    for k, logits in run([views(image)[0][0] for image in images]):
        scores, labels = logits.float().softmax(0).topk(min(BEST, len(logits)))
        found[k] = Classification(labels.cpu().numpy(), scores.cpu().numpy(), classes, tuple(images[k].shape[1:]))
    return [found[k] for k in range(len(images))]
