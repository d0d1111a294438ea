"""From a detector and a loader to predictions and figures."""

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .. import distributed
from ..data import Annotations
from .coco import coco_metrics, coco_results
from .voc import voc_metrics


def evaluate(
    model: nn.Module, loader: DataLoader, data: Annotations, masks: bool = False, backend: str = "faster_coco_eval"
) -> tuple[dict[str, float], list[dict]]:
    """Detect in every image of `data` and score it: figures in percent, and predictions in COCO's results format.

    Boxes always give the "bbox/…" figures, with `masks` also "segm/…", VOC data also "voc/…". Every rank takes
    part with its share of `loader`; the main rank scores, and all get its figures (predictions stay on the main).
    `backend` is that of `coco_metrics`.
    """
    found = distributed.gather_results(predict(model, loader, [c["id"] for c in data.categories]))
    metrics, predictions = {}, []
    if distributed.is_main():
        order = {image_id: k for k, image_id in enumerate(data.image_ids.tolist())}
        predictions = sorted(found, key=lambda p: order[p["image_id"]])
        metrics = score(predictions, data, masks, backend)
    return distributed.broadcast(metrics), predictions


def score(
    predictions: list[dict], data: Annotations, masks: bool, backend: str = "faster_coco_eval"
) -> dict[str, float]:
    """The figures that apply to this data set and model."""
    ground_truth = data.as_coco()
    metrics = coco_metrics(ground_truth, predictions, "bbox", backend)
    if masks:
        # pycocotools takes sizes from boxes where there are any; those of masks are meant (as in detectron2).
        without_boxes = [{k: v for k, v in p.items() if k != "bbox"} for p in predictions]
        outlined = [ground_truth["annotations"][j] for j in np.flatnonzero(data.outlines.enclosing())]
        metrics |= coco_metrics({**ground_truth, "annotations": outlined}, without_boxes, "segm", backend)
    if data.format == "voc":
        metrics |= voc_metrics(ground_truth, predictions)
    return metrics


@torch.inference_mode()
def predict(model: nn.Module, loader: DataLoader, category_ids: list[int]) -> list[dict]:
    """This rank's detections in COCO's results format; leaves the model's training mode as it was."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    predictions = []
    progress = tqdm(loader, desc="evaluate", unit="batch", disable=None if distributed.is_main() else True)
    for images, targets in progress:
        outputs = model([image.to(device) for image in images])
        for output, target in zip(outputs, targets, strict=True):
            detections = {key: output[key].cpu() for key in ("boxes", "labels", "scores")}
            if "masks" in output:
                detections["rles"] = encode_masks(output["masks"])
            predictions += coco_results(detections, target["image_id"], category_ids)
    model.train(training)
    return predictions


def encode_masks(probabilities: Tensor) -> list[dict]:
    """Masks (M, 1, H, W) of probabilities, cut at 0.5, as M RLEs that JSON can hold."""
    results = []
    for probability in probabilities[:, 0]:  # one at a time: all of a large image's in one array fill gigabytes
        mask = (probability >= 0.5).cpu().numpy().view(np.uint8)
        encoded = rle.encode(np.asfortranarray(mask))
        results.append({"size": encoded["size"], "counts": encoded["counts"].decode()})
    return results
