"""What a predictor returns for an image."""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as rle


@dataclass(frozen=True)
class Detections:
    """M objects found in an image, best first.

    Attributes:
        boxes: (M, 4), float32, absolute xyxy in pixels of the image as it was given.
        labels: (M,), int64, from 1; label k is `classes[k - 1]`.
        scores: (M,), float32, in [0, 1].
        classes: the names of all classes, in label order.
        size: height and width of the image.
        rles: M masks in COCO's compressed form, of the image's size; None for a detector without masks.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    classes: list[str]
    size: tuple[int, int]
    rles: list[dict] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label - 1] for label in self.labels.tolist()]

    @property
    def masks(self) -> np.ndarray | None:
        """(M, H, W), bool, decoded at each access; None for a detector without masks."""
        if self.rles is None:
            return None
        decoded = [rle.decode(encoded).astype(bool) for encoded in self.rles]
        return np.stack(decoded) if decoded else np.zeros((0, *self.size), bool)


@dataclass(frozen=True)
class Classification:
    """The most probable classes of an image, at most five, best first.

    Attributes:
        labels: (K,), int64, from 0: label k is `classes[k]`.
        scores: (K,), float32, probabilities.
        classes: the names of all classes, or their numbers as text if the checkpoint has no names.
        size: height and width of the image.
    """

    labels: np.ndarray
    scores: np.ndarray
    classes: list[str]
    size: tuple[int, int]

    @property
    def names(self) -> list[str]:
        """The names of the K classes."""
        return [self.classes[label] for label in self.labels.tolist()]
