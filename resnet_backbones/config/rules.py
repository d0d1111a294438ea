"""Checks of config values beyond their types: ranges, lists and combinations."""

import fnmatch
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import UserError

LARGEST = 10**9

# (minimum, maximum) of every number whose key matches; lists are checked element by element.
RANGES = [
    (1, 1024, "backbone.in_channels"),
    (1, 16384, "backbone.fpn_channels detector.*_head_width"),
    (1, 64, "detector.*_pool_size detector.mask_head_depth"),
    (1, 2**14, "detector.min_size evaluation.tta_sizes"),
    (1, LARGEST, "detector.max_size detector.anchor_sizes detector.rpn_*_top_n_*"),
    (1, LARGEST, "detector.*_batch_size_per_image detector.box_detections_per_img detector.topk_candidates"),
    (1e-6, 1e6, "detector.center_sampling_radius"),
    (0, 1 - 1e-6, "backbone.drop_path"),
    (0, 5, "backbone.freeze_at"),
    (1e-6, 1, "detector.*_fg_iou_thresh"),
    (0, 1, "detector.*_thresh detector.*_fraction *.image_mean *.flip data.copy_paste evaluation.sample_score"),
    (1e-6, 1e6, "*.image_std detector.aspect_ratios"),
    (1, 2**17, "*.batch_size solver.reference_batch_size solver.accumulate"),
    (1, LARGEST, "solver.max_iter solver.log_period solver.steps solver.ema_period"),
    (1, 100, "solver.keep_checkpoints"),
    (0, LARGEST, "solver.warmup_iters solver.checkpoint_period evaluation.period evaluation.samples"),
    (1, LARGEST, "evaluation.patience"),
    (1e-9, 1e6, "solver.epochs solver.step_epochs"),
    (0, 1e6, "solver.warmup_epochs"),
    (1e-30, 1e30, "solver.lr solver.gamma solver.clip_norm"),
    (0, 1, "solver.momentum solver.weight_decay solver.norm_weight_decay solver.warmup_factor"),
    (0, 1 - 1e-12, "solver.ema_decay loss.label_smoothing"),
    (0, 1024, "data.num_workers"),
    (1, 1024, "data.repeats"),
    (0.01, 100, "data.scale_jitter"),
    (1e-9, 1, "data.repeat_threshold"),
    (0, LARGEST, "data.max_unreadable evaluation.precise_bn solver.max_nonfinite"),
    (1, 4096, "augmentation.size augmentation.shorter_side preprocessing.size preprocessing.resize evaluation.scales"),
    (1e-6, 1, "augmentation.scale"),
    (0, 1024, "augmentation.padding"),
    (0, 30, "augmentation.rand_magnitude"),
    (0, 1, "augmentation.random_erasing"),
    (0, 1e6, "augmentation.lighting augmentation.mixup augmentation.cutmix"),
    (0, 2**63 - 1, "seed datasets.*.split_seed"),
]
CHOICES = {
    "backbone.fpn_p6_input": ("res5", "p5"),
    "solver.optimizer": ("sgd", "adamw", "lamb"),
    "detector.box_loss": ("smooth_l1", "giou"),
    "solver.schedule": ("steps", "cosine"),
    "solver.warmup_method": ("linear", "constant"),
    "solver.amp": ("none", "bf16", "fp16"),
    "solver.compile": ("none", "default", "reduce-overhead"),
    "augmentation.crop": ("shorter_side", "random_resized", "padded"),
    "augmentation.auto_augment": ("none", "trivial", "rand"),
    "preprocessing.interpolation": (None, "bilinear", "bicubic"),
    "loss.name": ("cross_entropy", "bce"),
    "evaluation.backend": ("hotcoco", "pycocotools"),
    "evaluation.views": ("center", "ten_crop", "multi_scale"),
}


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
        if key in CHOICES:
            *names, last = CHOICES[key]
            named = ", ".join("null" if name is None else name for name in names)
            require(value in CHOICES[key], key, value, f"{named} or {last}")

    backbone, solver = config["backbone"], config["solver"]
    for key in ("out_features", "deform_on", "checkpoint_stages"):
        require(_is_list_of(str, backbone[key] or []), f"backbone.{key}", backbone[key], "a list of names")
    require(_is_list_of(int, solver["steps"]), "solver.steps", solver["steps"], "a list of iterations")
    require(solver["steps"] == sorted(set(solver["steps"])), "solver.steps", solver["steps"], "increasing")
    patience, period = config["evaluation"]["patience"], config["evaluation"]["period"]
    require(not patience or period != 0, "evaluation.patience", patience, "null where evaluation.period is 0")
    slow = solver["nesterov"] and solver["momentum"] == 0
    require(not slow, "solver.nesterov", True, "false where solver.momentum is 0")
    divides = solver["batch_size"] % solver["accumulate"] == 0
    wanted = f"a divisor of solver.batch_size, {solver['batch_size']}"
    require(divides, "solver.accumulate", solver["accumulate"], wanted)
    average, most = solver["ema_decay"] is not None, solver["max_iter"]
    updated = not average or most is None or solver["ema_period"] <= most
    require(updated, "solver.ema_period", solver["ema_period"], f"at most solver.max_iter, {most}")
    (_check_detection if "detector" in config else _check_pretraining)(config, require)


def _check_detection(config: dict, require: Callable[[bool, str, Any, str], None]) -> None:
    detector, data = config["detector"], config["data"]
    for key in ("train", "test"):
        require(_is_list_of(str, data[key]), f"data.{key}", data[key], "a list of names")
        require(len(data[key]) > 0, f"data.{key}", data[key], "at least one data set")
    require(len(data["test"]) == len(set(data["test"])), "data.test", data["test"], "without repeats")
    _check_augmentation(config, require)
    plain = detector["box_loss"] == "smooth_l1" or detector["name"] not in ("retinanet", "fcos")
    wanted = f"smooth_l1 where detector.name is {detector['name']}, which has no box head"
    require(plain, "detector.box_loss", detector["box_loss"], wanted)
    _check_normalization(config, "detector", require)
    sizes = config["evaluation"]["tta_sizes"]
    distinct = sizes is None or (_is_list_of(int, sizes) and 0 < len(sizes) == len(set(sizes)))
    require(distinct, "evaluation.tta_sizes", sizes, "null or a list of different sizes")
    for key in ("min_size", "aspect_ratios"):
        flat = _is_list_of((int, float), detector[key]) and detector[key]
        require(bool(flat), f"detector.{key}", detector[key], "a list of at least one number")
    sizes = detector["anchor_sizes"]
    levels = _is_list_of(list, sizes) and all(level and _is_list_of(int, level) for level in sizes)
    require(bool(levels and sizes), "detector.anchor_sizes", sizes, "a list of sizes for each pyramid level")
    for part in ("rpn", "box"):
        low, high = detector[f"{part}_bg_iou_thresh"], detector[f"{part}_fg_iou_thresh"]
        require(low <= high, f"detector.{part}_bg_iou_thresh", low, f"at most {part}_fg_iou_thresh, {high}")


def _check_augmentation(config: dict, require: Callable[[bool, str, Any, str], None]) -> None:
    data, detector, channels = config["data"], config["detector"]["name"], config["backbone"]["in_channels"] or 3
    wanted = f"false where backbone.in_channels is not 3 but {channels}: it changes colors"
    require(not data["photometric"] or channels == 3, "data.photometric", True, wanted)
    jitter = data["scale_jitter"]
    is_range = jitter is None or (_is_list_of((int, float), jitter) and len(jitter) == 2 and jitter[0] <= jitter[1])
    require(is_range, "data.scale_jitter", jitter, "two numbers, the smaller first, or null")
    wanted = f"0 where detector.name is {detector}: objects are cut out by the masks of mask_rcnn"
    require(not data["copy_paste"] or detector == "mask_rcnn", "data.copy_paste", data["copy_paste"], wanted)


def _check_pretraining(config: dict, require: Callable[[bool, str, Any, str], None]) -> None:
    data, augmentation, preprocessing = config["data"], config["augmentation"], config["preprocessing"]
    solver, evaluation = config["solver"], config["evaluation"]
    for key, value in [
        ("augmentation.shorter_side", augmentation["shorter_side"]),
        ("augmentation.scale", augmentation["scale"]),
        ("evaluation.scales", evaluation["scales"]),
        ("solver.step_epochs", solver["step_epochs"]),
    ]:
        require(_is_list_of((int, float), value), key, value, "a list of numbers")
    for key in ("compare", "ensemble"):
        require(_is_list_of(str, config[key]), key, config[key], "a list of names")
    _check_normalization(config, "preprocessing", require)
    channels = config["backbone"]["in_channels"] or 3
    lighting, policy = augmentation["lighting"], augmentation["auto_augment"]
    wanted = f"0 where backbone.in_channels is not 3 but {channels}: it shifts colors"
    require(not lighting or channels == 3, "augmentation.lighting", lighting, wanted)
    wanted = f"none where backbone.in_channels is neither 1 nor 3 but {channels}: it changes colors"
    require(policy == "none" or channels in (1, 3), "augmentation.auto_augment", policy, wanted)
    for key in ("shorter_side", "scale"):
        low_high = augmentation[key]
        ordered = len(low_high) == 2 and low_high[0] <= low_high[1]
        require(ordered, f"augmentation.{key}", low_high, "two numbers, the smaller first")
    if augmentation["crop"] == "shorter_side":
        low = augmentation["shorter_side"][0]
        require(low >= augmentation["size"], "augmentation.size", augmentation["size"], f"at most shorter_side, {low}")
    require(bool(evaluation["scales"]), "evaluation.scales", evaluation["scales"], "at least one")
    if preprocessing["per_pixel_mean"]:
        one_size = preprocessing["size"] == augmentation["size"] and evaluation["views"] != "multi_scale"
        wanted = "false unless images have one size in training and evaluation"
        require(one_size, "preprocessing.per_pixel_mean", True, wanted)

    epochs, max_iter = solver["epochs"], solver["max_iter"]
    require((epochs is None) != (max_iter is None), "solver.epochs", epochs, f"null or max_iter null ({max_iter})")
    steps = solver["step_epochs"]
    require(steps == sorted(set(steps)), "solver.step_epochs", steps, "increasing")
    if epochs is None:
        require(not steps, "solver.step_epochs", steps, "empty with max_iter; use steps")
        require(solver["warmup_epochs"] == 0, "solver.warmup_epochs", solver["warmup_epochs"], "0 with max_iter")
    else:
        require(not solver["steps"], "solver.steps", solver["steps"], "empty with epochs; use step_epochs")
        require(solver["warmup_iters"] == 0, "solver.warmup_iters", solver["warmup_iters"], "0 with epochs")
    require(data["repeats"] <= solver["batch_size"], "data.repeats", data["repeats"], "at most solver.batch_size")
    doubled = len(set(config["compare"])) < len(config["compare"])
    require(not doubled, "compare", config["compare"], "without repeats")


def _check_normalization(config: dict, section: str, require: Callable[[bool, str, Any, str], None]) -> None:
    channels = config["backbone"]["in_channels"] or 3
    for key in ("image_mean", "image_std"):
        given = config[section][key]
        fits = given is None or (_is_list_of((int, float), given) and len(given) == channels)
        count = "" if given is None else f", not {len(given)}"
        wanted = f"one number for each of {channels} channels (backbone.in_channels), of images in [0, 1]{count}"
        require(fits, f"{section}.{key}", given, wanted)


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
