"""What tiles find in images that are much larger than those a detector was trained on.

    python -m benchmarks.tiles output/bccd_faster_rcnn_R18/best.pt --config bccd_faster_rcnn_R18.yaml

Mosaics of 4 x 4 test images, nothing enlarged, are predicted whole and in tiles; a detection counts for the image that
its center lies in. Prints the AP50 of both, and of the images one by one.
"""

import argparse

import numpy as np

from resnet_backbones import Predictor
from resnet_backbones.config import load_config
from resnet_backbones.data.annotations import Annotations
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.images import read_image
from resnet_backbones.evaluation.coco import coco_metrics
from resnet_backbones.evaluation.detections import coco_results
from resnet_backbones.inference.detections import Detections


def mosaics_of(data: Annotations, side: int, limit: int | None) -> list[list[int]]:
    """The indices of `side`² images each, all of the most frequent size."""
    _, inverse, counts = np.unique(data.sizes, axis=0, return_inverse=True, return_counts=True)
    chosen = np.flatnonzero(inverse.ravel() == counts.argmax()).tolist()
    groups = [chosen[k : k + side**2] for k in range(0, len(chosen) - side**2 + 1, side**2)]
    return groups[:limit]


def joined(images: list[np.ndarray], side: int) -> np.ndarray:
    """Equal images (H, W, 3), row by row, as one of `side` rows and columns."""
    return np.concatenate([np.concatenate(images[k : k + side], axis=1) for k in range(0, len(images), side)])


def split(found: Detections, side: int) -> list[Detections]:
    """The detections of a mosaic as those of its images."""
    height, width = (length // side for length in found.size)
    centers = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    columns, rows = (centers // [width, height]).clip(0, side - 1).astype(int).T
    parts = []
    for cell in range(side**2):
        inside = rows * side + columns == cell
        corner = np.array([cell % side * width, cell // side * height] * 2)
        parts.append(
            Detections(
                found.boxes[inside] - corner, found.labels[inside], found.scores[inside], found.classes, (height, width)
            )
        )
    return parts


def score(data: Annotations, found: dict[int, Detections]) -> float:
    """AP50 in percent of the detections of the images k in `found`."""
    content, ids = data.as_coco(), {data.image_id(k) for k in found}
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["annotations"] = [o for o in content["annotations"] if o["image_id"] in ids]
    results = []
    for k, d in found.items():
        columns = {"boxes": d.boxes, "labels": d.labels, "scores": d.scores}
        results += coco_results(columns, data.image_id(k), [c["id"] for c in data.categories])
    return coco_metrics(content, results, "bbox")["bbox/AP50"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--config", default="bccd_faster_rcnn_R18.yaml", help="whose first test set is used")
    parser.add_argument("--side", type=int, default=4, help="rows and columns of a mosaic")
    parser.add_argument("--mosaics", type=int, help="how many; by default as many as there are images for")
    parser.add_argument("--tile", type=int, nargs="+", default=[480], help="sides of tiles")
    parser.add_argument("--overlap", type=float, default=0.5)
    args = parser.parse_args(argv)
    config = load_config(args.config)
    data = load_annotations(config.data.test[0], config.datasets)
    groups = mosaics_of(data, args.side, args.mosaics)
    print(f"{len(groups)} mosaics of {args.side} x {args.side} images of {data.name}")
    whole = Predictor(args.weights)
    ways = {"single images": None, "mosaic, whole": whole}
    ways |= {f"mosaic, tiles of {t}": Predictor(args.weights, tile=t, overlap=args.overlap) for t in args.tile}
    for name, predictor in ways.items():
        found = {}
        for group in groups:
            images = [read_image(data.path(k)) for k in group]
            parts = whole(images) if predictor is None else split(predictor(joined(images, args.side)), args.side)
            found |= dict(zip(group, parts, strict=True))
        print(f"{name:24} AP50 {score(data, found):6.2f}, {sum(map(len, found.values()))} detections", flush=True)


if __name__ == "__main__":
    main()
