"""One table of the names that a tensor has in our format (also torchvision's and timm's), detectron2 and Caffe2.

It is read in both directions. A placeholder such as {stage} stands for a row of `VALUES`, {block} for any number.
"""

import itertools
import re
from functools import cache

OURS, DETECTRON2, CAFFE2 = 0, 1, 2  # columns

BLOCK = [
    ("conv{conv}.weight", "conv{conv}.weight", "branch2{conv}_w"),
    ("bn{conv}.{norm}", "conv{conv}.norm.{norm}", "branch2{conv}_bn_{norm}"),
    ("downsample.0.weight", "shortcut.weight", "branch1_w"),
    ("downsample.1.{norm}", "shortcut.norm.{norm}", "branch1_bn_{norm}"),
    ("conv{conv}.offset.{part}", "conv{conv}_offset.{part}", None),
]


def blocks_of(*prefixes: str | None) -> list[tuple]:
    """The rows of `BLOCK` with a prefix for each column."""
    return [tuple(p + n if p and n else None for p, n in zip(prefixes, row, strict=True)) for row in BLOCK]


BACKBONE = [
    ("conv1.weight", "stem.conv1.weight", "conv1_w"),
    ("bn1.{norm}", "stem.conv1.norm.{norm}", "res_conv1_bn_{norm}"),
    *blocks_of("layer{stage}.{block}.", "res{stage}.{block}.", "res{stage}_{block}_"),
    ("fc.{part}", "linear.{part}", "fc1000_{part}"),
]

# A pyramid from res2 has four laterals, from res3 three; {lateral} counts from the lowest.
PYRAMID = [
    ("fpn.inner_blocks.{lateral}.0.{part}", "fpn_lateral{lateral}.{part}", None),
    ("fpn.inner_blocks.{lateral}.1.{norm}", "fpn_lateral{lateral}.norm.{norm}", None),
    ("fpn.layer_blocks.{lateral}.0.{part}", "fpn_output{lateral}.{part}", None),
    ("fpn.layer_blocks.{lateral}.1.{norm}", "fpn_output{lateral}.norm.{norm}", None),
    ("fpn.extra_blocks.{top}.{part}", "top_block.{top}.{part}", None),
]

HEADS = [
    *blocks_of("roi_heads.box_head.stage.{block}.", "roi_heads.res5.{block}.", None),  # in C4
    ("rpn.head.conv.0.0.{part}", "proposal_generator.rpn_head.conv.{part}", None),
    ("rpn.head.cls_logits.{part}", "proposal_generator.rpn_head.objectness_logits.{part}", None),
    ("rpn.head.bbox_pred.{part}", "proposal_generator.rpn_head.anchor_deltas.{part}", None),
    ("roi_heads.box_head.fc6.{part}", "roi_heads.box_head.fc1.{part}", None),
    ("roi_heads.box_head.fc7.{part}", "roi_heads.box_head.fc2.{part}", None),
    ("roi_heads.box_predictor.cls_score.{part}", "roi_heads.box_predictor.cls_score.{part}", None),
    ("roi_heads.box_predictor.bbox_pred.{part}", "roi_heads.box_predictor.bbox_pred.{part}", None),
    ("roi_heads.mask_head.{fcn}.0.{part}", "roi_heads.mask_head.mask_fcn{fcn}.{part}", None),
    ("roi_heads.mask_predictor.conv5_mask.{part}", "roi_heads.mask_head.deconv.{part}", None),
    ("roi_heads.mask_predictor.mask_fcn_logits.{part}", "roi_heads.mask_head.predictor.{part}", None),
]

VALUES: dict[str, list[tuple]] = {
    "stage": [(str(k), str(k + 1), str(k + 1)) for k in range(1, 5)],
    "conv": [("1", "1", "a"), ("2", "2", "b"), ("3", "3", "c")],
    "norm": [
        ("weight", "weight", "s"),
        ("bias", "bias", "b"),
        ("running_mean", "running_mean", "rm"),
        ("running_var", "running_var", "riv"),
        ("num_batches_tracked", "num_batches_tracked", None),
    ],
    "part": [("weight", "weight", "w"), ("bias", "bias", "b")],
    "top": [("p6", "p6", None), ("p7", "p7", None)],
    "fcn": [(str(k), str(k + 1), None) for k in range(16)],
}
BLOCKS = 64  # the longest stage in the papers has 36


@cache
def renames(source: int, target: int, laterals: int = 4) -> dict[str, str]:
    """Map every name of column `source` to its name in column `target`, for a pyramid with 4 or 3 `laterals`.

    Includes the names within a pyramid, after "body." (ours) or "bottom_up." (detectron2), and within a detector, after
    "backbone.".
    """
    body = expand(BACKBONE, laterals)
    pyramid = expand(PYRAMID, laterals)
    rows = [
        *body,
        *pyramid,
        *((f"body.{ours}", f"bottom_up.{theirs}", None) for ours, theirs, _ in body),
        *((f"backbone.{ours}", f"backbone.{theirs}", None) for ours, theirs, _ in [*body, *pyramid]),
        *((f"backbone.body.{ours}", f"backbone.bottom_up.{theirs}", None) for ours, theirs, _ in body),
        *expand(HEADS, laterals),
    ]
    return {row[source]: row[target] for row in rows if row[source] is not None and row[target] is not None}


def expand(table: list[tuple], laterals: int) -> list[tuple]:
    """The rows of `table` for every combination of values of its placeholders."""
    values = VALUES | {"block": [(str(k),) * 3 for k in range(BLOCKS)]}
    lowest = 6 - laterals
    values["lateral"] = [(str(k), str(k + lowest), None) for k in range(laterals)]
    rows = []
    for row in table:
        holders = re.findall(r"{(\w+)}", row[OURS])
        for chosen in itertools.product(*(values[holder] for holder in holders)):
            rows.append(tuple(_filled(name, holders, [c[column] for c in chosen]) for column, name in enumerate(row)))
    return rows


def _filled(name: str | None, holders: list[str], values: list[str | None]) -> str | None:
    return None if name is None or None in values else name.format(**dict(zip(holders, values, strict=True)))
