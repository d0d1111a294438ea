"""From a detector's output to `Detections`: above thresholds, of whole images or of tiles."""

from collections.abc import Callable, Iterable
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, unknown
from .detections import Detections
from .masks import encode, paste
from .tiles import Tile, merge, tiles_of

Run = Callable[[list[Tensor]], Iterable[tuple[int, dict]]]
DEFAULT_THRESHOLD = 0.05


def score_thresholds(given: float | dict[str, float], classes: list[str]) -> np.ndarray:
    """(K,): the threshold of each class. Raises `UserError` for unknown classes and numbers outside [0, 1]."""
    by_class = given if isinstance(given, dict) else dict.fromkeys(classes, given)
    for name, value in by_class.items():
        if name not in classes:
            raise UserError(f"score_threshold: {unknown('class', name, classes)}")
        if not (isinstance(value, Real) and 0 <= value <= 1):
            raise UserError(f"score_threshold of {name} is {value!r}; it must be a number from 0 to 1.")
    return np.array([by_class.get(name, DEFAULT_THRESHOLD) for name in classes])


def detect(
    run: Run,
    images: list[Tensor],
    classes: list[str],
    thresholds: np.ndarray,
    tile: int | None = None,
    overlap: float = 0.2,
) -> list[Detections]:
    """The detections in each of `images` (C, H, W).

    Args:
        run: gives the outputs of images with their indices, as `Predictor.run` does.
        thresholds: (K,), the minimum score of each class.
        tile, overlap: as in `tiles_of`.
    """
    tiles = [tiles_of(image.shape[2], image.shape[1], tile, overlap) for image in images]
    places = [(k, part) for k, parts in enumerate(tiles) for part in parts]
    parts = [images[k][:, part.y0 : part.y1, part.x0 : part.x1] for k, part in places]
    found: dict[int, Detections] = {}
    for j, output in run(parts):
        k, part = places[j]
        found[j] = above_thresholds(output, part, tuple(images[k].shape[1:]), classes, thresholds)
    in_order = iter(sorted(found))
    return [merge([found[next(in_order)] for _ in parts], parts) for parts in tiles]


def above_thresholds(
    output: dict[str, Tensor], tile: Tile, size: tuple[int, int], classes: list[str], thresholds: np.ndarray
) -> Detections:
    """A model's output for one tile, in coordinates of the image, whose height and width are `size`."""
    scores, labels = output["scores"].float().cpu(), output["labels"].cpu()
    kept = torch.from_numpy(scores.numpy() >= thresholds[labels.numpy() - 1])
    boxes = output["boxes"].float().cpu()[kept]
    rles, corner = None, (tile.x0, tile.y0)
    if "mask_crops" in output:
        rles = paste(output["mask_crops"].cpu()[kept], boxes, corner, size)
    elif "masks" in output:  # already pasted by detectron2
        masks = output["masks"][kept.to(output["masks"].device), 0]
        rles = [encode((mask >= 0.5).cpu().numpy(), corner, size) for mask in masks]
    boxes = (boxes + boxes.new_tensor(corner * 2)).numpy()
    return Detections(boxes, labels[kept].numpy(), scores[kept].numpy(), classes, size, rles)
