"""From a detector and a loader to predictions, metrics and the files that show them."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor, nn
from tqdm import tqdm

from .. import distributed
from ..data.annotations import Annotations
from ..data.masks import as_text
from .backends import BACKENDS
from .coco import coco_metrics
from .detections import coco_results
from .report import write_json
from .samples import save_samples
from .voc import voc_metrics

logger = logging.getLogger(__name__)


def evaluate(
    model: nn.Module, loader: Iterable, data: Annotations, masks: bool = False, backend: str = BACKENDS[0]
) -> tuple[dict[str, float], list[dict]]:
    """Run the detector on every image of `data` and score it.

    Returns metrics in percent, the same on every rank, and on the main rank the predictions in COCO's results format.
    Boxes give "bbox/…", `masks` add "segm/…", and VOC data adds "voc/…".

    Args:
        loader: this rank's share of the images, from `build_test_loader`.
        backend: as in `coco_metrics`.
    """
    found = distributed.gather_results(predict(model, loader, [c["id"] for c in data.categories]))
    metrics, predictions = {}, []
    if distributed.is_main():
        order = {image_id: k for k, image_id in enumerate(data.image_ids.tolist())}
        predictions = sorted(found, key=lambda p: order[p["image_id"]])
        metrics = score(predictions, data, masks, backend)
    return distributed.broadcast(metrics), predictions


def evaluate_sets(
    model: nn.Module, sets: Sequence[Annotations], loaders: Sequence[Iterable], masks: bool, backend: str
) -> tuple[dict[str, float], list[list[dict]]]:
    """`evaluate` on several test sets: all metrics in one dict, and the predictions of each set.

    Metrics of the first set have plain names ("bbox/AP"), those of the others start with the name of their set
    ("voc_2012_val/bbox/AP").
    """
    metrics, predictions = {}, []
    for k, (data, loader) in enumerate(zip(sets, loaders, strict=True)):
        of_set, found = evaluate(model, loader, data, masks, backend)
        metrics |= {f"{data.name}/{name}" if k else name: value for name, value in of_set.items()}
        predictions.append(found)
    return metrics, predictions


def save_results(
    output_dir: Path,
    sets: Sequence[Annotations],
    predictions: Sequence[list[dict]],
    samples: int,
    min_score: float,
    channels: int = 3,
) -> None:
    """Write `predictions.json` and `samples/*.png` for the first set, `predictions_NAME.json` … for the others.

    Args:
        samples: the number of images to draw from each set.
        min_score: of the predictions that are drawn.
        channels: of the images; the first three are drawn, or one as gray.
    """
    for k, (data, found) in enumerate(zip(sets, predictions, strict=True)):
        suffix = f"_{data.name}" if k else ""
        write_json(output_dir / f"predictions{suffix}.json", found)
        save_samples(data, found, output_dir / f"samples{suffix}", samples, min_score, channels)


def score(predictions: list[dict], data: Annotations, masks: bool, backend: str = BACKENDS[0]) -> dict[str, float]:
    """All metrics that apply to this dataset; none for a test set without annotations."""
    if not data.is_labeled:
        logger.warning("%s has no annotations: its predictions are written, and there are no metrics", data.name)
        return {}
    metrics = coco_metrics(data, predictions, "bbox", backend)
    if masks:
        metrics |= coco_metrics(data, predictions, "segm", backend)
    if data.format == "voc":
        metrics |= voc_metrics(data.as_coco(), predictions)
    return metrics


@torch.inference_mode()
def predict(model: nn.Module, loader: Iterable, category_ids: list[int]) -> list[dict]:
    """This rank's detections in COCO's results format. Restores the model's training mode."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    predictions = []
    progress = tqdm(loader, desc="evaluate", unit="batch", disable=None if distributed.is_main() else True, leave=None)
    for images, targets in progress:
        outputs = model([image.to(device) for image in images])
        for output, target in zip(outputs, targets, strict=True):
            detections = {key: output[key].cpu() for key in ("boxes", "labels", "scores")}
            if "masks" in output:
                detections["rles"] = encode_masks(output["masks"])
            predictions += coco_results(detections, target["image_id"], category_ids)
    if training:  # a fused model has no training mode
        model.train()
    return predictions


def encode_masks(probabilities: Tensor) -> list[dict]:
    """Masks (M, 1, H, W) of probabilities, thresholded at 0.5, as M JSON-serializable RLEs."""
    results = []
    for probability in probabilities[:, 0]:  # one at a time: all masks of a large image take gigabytes
        mask = (probability >= 0.5).cpu().numpy().view(np.uint8)
        encoded = rle.encode(np.asfortranarray(mask))
        results.append(as_text(encoded))
    return results
