"""What config values may be, beyond their types: ranges, lists and combinations."""

import fnmatch
from collections.abc import Iterator
from typing import Any

from .errors import UserError

LARGEST = 10**9

# (smallest, largest) of every number whose key matches; lists are checked element by element.
RANGES = [
    (1, LARGEST, "backbone.fpn_channels detector.m??_size detector.anchor_sizes detector.rpn_*_top_n_*"),
    (1, LARGEST, "detector.*_batch_size_per_image detector.box_detections_per_img detector.topk_candidates"),
    (1e-6, 1e6, "detector.center_sampling_radius"),
    (0, 1 - 1e-6, "backbone.drop_path"),
    (1, 65536, "detector.*_head_width detector.*_pool_size detector.mask_head_depth"),
    (0, 5, "backbone.freeze_at"),
    (1e-6, 1, "detector.*_fg_iou_thresh"),
    (0, 1, "detector.*_thresh detector.*_fraction detector.image_mean data.flip evaluation.sample_score"),
    (1e-6, 1e6, "detector.image_std detector.aspect_ratios"),
    (1, LARGEST, "solver.batch_size solver.accumulate solver.max_iter solver.log_period solver.steps"),
    (0, LARGEST, "solver.warmup_iters solver.checkpoint_period evaluation.period evaluation.samples"),
    (1e-30, 1e30, "solver.lr solver.gamma solver.clip_norm"),
    (0, 1, "solver.momentum solver.weight_decay solver.warmup_factor"),
    (0, 1024, "data.num_workers"),
    (0, 2**63 - 1, "seed"),
]


def check_values(config: dict, source: str) -> None:
    """Raise `UserError` naming `source` and the key for a value that is impossible or contradicts another."""

    def require(holds: bool, key: str, value: Any, wanted: str) -> None:
        if not holds:
            raise UserError(f"{source}: {key} is {value}; it must be {wanted}.")

    for key, value in _leaves(config):
        for smallest, largest, patterns in RANGES:
            if value is not None and any(fnmatch.fnmatch(key, pattern) for pattern in patterns.split()):
                require(_is_number(value) and smallest <= value <= largest, key, value, f"from {smallest} to {largest}")
                break

    backbone, detector, data, solver = (config[part] for part in ("backbone", "detector", "data", "solver"))
    for key, names in [
        ("data.train", data["train"]),
        ("data.test", data["test"]),
        *((f"backbone.{key}", backbone[key] or []) for key in ("out_features", "deform_on", "checkpoint_stages")),
    ]:
        require(_is_list_of(str, names), key, names, "a list of names")
    require(solver["schedule"] in ("steps", "cosine"), "solver.schedule", solver["schedule"], "steps or cosine")
    require(solver["amp"] in ("none", "bf16", "fp16"), "solver.amp", solver["amp"], "none, bf16 or fp16")
    require(_is_list_of(int, solver["steps"]), "solver.steps", solver["steps"], "a list of iterations")
    require(solver["steps"] == sorted(set(solver["steps"])), "solver.steps", solver["steps"], "increasing")
    divides = solver["batch_size"] % solver["accumulate"] == 0
    wanted = f"a divisor of solver.batch_size, {solver['batch_size']}"
    require(divides, "solver.accumulate", solver["accumulate"], wanted)
    for key in ("train", "test"):
        require(len(data[key]) > 0, f"data.{key}", data[key], "at least one data set")
    for key in ("image_mean", "image_std"):
        rgb = _is_list_of((int, float), detector[key]) and len(detector[key]) == 3
        require(rgb, f"detector.{key}", detector[key], "three numbers, of RGB in [0, 1]")
    for key in ("min_size", "aspect_ratios"):
        flat = _is_list_of((int, float), detector[key]) and detector[key]
        require(bool(flat), f"detector.{key}", detector[key], "a list of at least one number")
    sizes = detector["anchor_sizes"]
    levels = _is_list_of(list, sizes) and all(level and _is_list_of(int, level) for level in sizes)
    require(bool(levels and sizes), "detector.anchor_sizes", sizes, "a list of sizes for each pyramid level")
    for part in ("rpn", "box"):
        low, high = detector[f"{part}_bg_iou_thresh"], detector[f"{part}_fg_iou_thresh"]
        require(low <= high, f"detector.{part}_bg_iou_thresh", low, f"at most {part}_fg_iou_thresh, {high}")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below nested mappings and lists, under the dotted key of its mapping."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(child, key)
    else:
        yield key, value


def _is_list_of(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
