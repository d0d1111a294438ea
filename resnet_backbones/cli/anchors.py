"""Propose anchors that fit the boxes of a config's training data, by k-means.

    resnet-backbones anchors bccd_faster_rcnn_R18.yaml [key=value …]

Boxes are measured as the network sees them, resized to the last of detector.min_size. Prints the best IoU of boxes
with the config's anchors and with the proposed ones, which have as many sizes per level and aspect ratios, and the
overrides to use them.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..config import load_config
from ..errors import UserError, one_line_errors
from . import command_parser

if TYPE_CHECKING:
    from ..data.annotations import Annotations


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("anchors", __doc__)
    parser.add_argument("config", help="a YAML file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    with one_line_errors():
        config = load_config(args.config, args.overrides)
        d = config.detector
        if d.name == "fcos":
            raise UserError("detector.name is fcos, which has no anchors; choose faster_rcnn, mask_rcnn or retinanet.")
        from ..analysis.anchors import anchor_fit, propose_anchors
        from ..data.datasets import load_annotations
        from .training import check

        check(config, eval_only=False)
        sets = [load_annotations(name, config.datasets) for name in config.data.train]
        shapes = np.concatenate([seen_shapes(data, d.min_size[-1], d.max_size) for data in sets])
        if not len(shapes):
            raise UserError(f"data.train: {', '.join(config.data.train)} has no boxes to fit anchors to.")
        sizes, ratios = propose_anchors(shapes, d.anchor_sizes, d.aspect_ratios)
        print(f"{len(shapes)} boxes, shorter side resized to {d.min_size[-1]} pixels")
        print(f"{'':10}{'mean IoU':>10}{'>= 0.5':>9}{'>= 0.7':>9}")
        for name, anchors in (("config", (d.anchor_sizes, d.aspect_ratios)), ("k-means", (sizes, ratios))):
            mean, over_50, over_70 = anchor_fit(shapes, *anchors)
            print(f"{name:10}{mean:10.3f}{over_50:9.1%}{over_70:9.1%}")
        print(f"detector.anchor_sizes={sizes} detector.aspect_ratios={ratios}".replace(", ", ","))


def seen_shapes(data: "Annotations", min_size: int, max_size: int) -> np.ndarray:
    """(M, 2): widths and heights of the objects to train on, in pixels of the resized images."""
    sizes, kept = data.sizes[data.image_index], data.trainable
    scale = np.minimum(min_size / sizes.min(1), max_size / sizes.max(1))
    corners = data.corners[kept]
    return (corners[:, 2:] - corners[:, :2]) * scale[kept, None]
