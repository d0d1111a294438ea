"""The reports that a run writes: `report.html` and `report.json` in its `output_dir`."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from ..config import image_channels
from ..data.annotations import Annotations
from ..data.imagenet import FileImages
from ..data.images import decode_image
from ..data.shards import ShardImages
from ..errors import UserError, reason
from ..report.writing import not_fatal, write_classification_report, write_detection_report
from ..training.curves import read_rows

logger = logging.getLogger(__name__)


def detection_reports(
    output_dir: Path, sets: Sequence[Annotations], predictions: Sequence[list[dict]], config: DictConfig
) -> None:
    """Write `report.html` for the first test set, `report_NAME.html` … for the others that have annotations."""
    iou_type = "segm" if config.detector.name == "mask_rcnn" else "bbox"
    for k, (data, found) in enumerate(zip(sets, predictions, strict=True)):
        path = output_dir / f"report{f'_{data.name}' if k else ''}.html"
        if data.is_labeled:
            with not_fatal(path):
                channels, rows = image_channels(config), rows_of(output_dir)
                write_detection_report(path, data, found, iou_type, rows=rows, channels=channels)


def classification_report(
    output_dir: Path, images: FileImages | ShardImages, answers: Sequence[dict], config: DictConfig
) -> None:
    """Write `report.html` for the validation images."""
    path = output_dir / "report.html"
    with not_fatal(path):
        index_of = {images.path(k): k for k in range(len(images))}

        def read(path: str) -> np.ndarray:
            try:
                content, _, _ = images.read(index_of[path])
            except OSError as error:
                raise UserError(f"Image {path} cannot be read: {reason(error)}.") from error
            return decode_image(content, path, channels=image_channels(config))

        rows = rows_of(output_dir)
        write_classification_report(path, Path(config.data.val).name, images.classes, answers, read, rows)


def rows_of(output_dir: Path) -> list[dict]:
    """The rows of `metrics.jsonl`; none if nothing was trained."""
    return read_rows(output_dir) if (output_dir / "metrics.jsonl").is_file() else []
