"""The config: these dataclasses are its schema, its defaults and its documentation."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from .config_rules import check_values
from .errors import UserError, reason

CONFIG_FOLDER = Path(__file__).parent.parent / "configs"


@dataclass
class BackboneConfig:
    """The arguments of `build_backbone`."""

    name: str = "resnet50_fpn"  # a name that `python -m resnet_backbones` lists, or timm:NAME; with _fpn for an FPN
    norm: str = "BN"  # BN, FrozenBN, SyncBN, GN or none
    freeze_at: int = 0  # 0 nothing, 1 stem, 2 stem and res2, … 5 everything
    weights: str | None = None  # a file, an URL or torchvision://NAME/WEIGHTS; null trains from scratch
    out_features: list[str] | None = None  # null: the backbone's default, p2 … p6 for an FPN
    fpn_channels: int = 256
    fpn_norm: str = "none"

    # Changes to a residual family; null leaves each as the family has it. `build_backbone` explains them.
    shortcut: str | None = None  # A, B, C, D, B3x3 or none
    stride_in_1x1: bool | None = None  # the original placement, in the first 1x1 of a bottleneck
    output_stride: int | None = None  # 8 or 16: res5 (and res4) dilated instead of strided, for heads without FPN
    deform_on: list[str] | None = None  # stages whose 3x3 is deformable, such as [res3, res4, res5]
    deform_modulated: bool | None = None  # version 2, with a mask
    drop_path: float | None = None  # stochastic depth, the last block's probability
    zero_init_residual: bool | None = None
    checkpoint_stages: list[str] | None = None  # stages that recompute activations to save memory


@dataclass
class DetectorConfig:
    """`library` and `name` choose the function, the rest are the arguments of `detectors.LIBRARY.NAME`."""

    library: str = "torchvision"
    name: str = "faster_rcnn"  # mask_rcnn, retinanet or fcos

    # Images: the shorter side is resized to one of min_size, drawn for each image in training and the last one in
    # evaluation, unless the longer side would pass max_size. Mean and std are of RGB in [0, 1].
    min_size: list[int] = field(default_factory=lambda: [800])
    max_size: int = 1333
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    anchor_sizes: list[list[int]] = field(default_factory=lambda: [[32], [64], [128], [256], [512]])  # per level, px
    aspect_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])  # height / width

    rpn_pre_nms_top_n_train: int = 2000  # per level
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000  # per image
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_score_thresh: float = 0.0

    box_head: str = "mlp"  # or res5: the backbone's last stage on RoIs of res4 (C4)
    box_pool_size: int = 7
    box_head_width: int = 1024
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25

    topk_candidates: int = 1000  # of retinanet and fcos, per level before NMS
    center_sampling_radius: float = 1.5  # of fcos, in strides

    mask_pool_size: int = 14  # mask_* are mask_rcnn's alone
    mask_head_width: int = 256
    mask_head_depth: int = 4


@dataclass
class DatasetConfig:
    """A user's own data set."""

    format: str = "coco"  # coco, voc or shapes
    root: str = ""  # coco: the image folder; voc: the folder of Annotations, ImageSets and JPEGImages
    annotations: str | None = None  # coco: the JSON file
    split: str | None = None  # voc: a list in ImageSets/Main; shapes: train or val
    classes: list[str] | None = None  # voc: names in label order; null takes those of Annotations, sorted


@dataclass
class DataConfig:
    train: list[str] = field(default_factory=lambda: ["shapes_train"])
    test: list[str] = field(default_factory=lambda: ["shapes_val"])
    num_workers: int = 4  # loader processes on each rank
    flip: float = 0.5  # probability of a horizontal flip in training
    keep_empty: bool = False  # train on images without objects, too
    aspect_ratio_grouping: bool = True  # batches of only wide or only tall images: less padding


@dataclass
class SolverConfig:
    batch_size: int = 16  # images in an optimiser step, over all ranks and accumulated parts
    accumulate: int = 1  # parts in which a rank computes its share of the batch
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "steps"  # steps or cosine (to zero)
    steps: list[int] = field(default_factory=lambda: [60000, 80000])  # iterations at which lr is multiplied by gamma
    gamma: float = 0.1
    max_iter: int = 90000
    warmup_iters: int = 1000
    warmup_factor: float = 0.001  # of lr, where the linear warm-up starts
    clip_norm: float | None = None  # largest gradient norm over all parameters
    amp: str = "none"  # none, bf16 or fp16
    checkpoint_period: int = 5000  # iterations between writes of last.pt; 0: only at the end
    log_period: int = 20
    deterministic: bool = False  # only deterministic kernels; the same run twice gives the same weights


@dataclass
class EvaluationConfig:
    period: int = 0  # iterations between evaluations; 0: only at the end
    samples: int = 8  # images drawn into samples/
    sample_score: float = 0.5  # draw detections of at least this score


@dataclass
class Config:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)  # a user's own, by the name used in data
    weights: str | None = None  # of the whole detector, to evaluate or to start from
    output_dir: str = "output"
    seed: int = 0


def load_config(name: str, overrides: list[str] | None = None) -> DictConfig:
    """The config of a YAML file with `key=value` overrides, checked against the schema.

    Args:
        name: a path, or a name in `configs/`, with or without ".yaml".
        overrides: as in `["solver.lr=0.01", "data.test=[coco_2017_val]"]`.

    Raises `UserError` that names the file, the key and the near match.
    """
    path = find_config(name)
    try:
        given = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, DictConfig):
        raise UserError(f"{path} must hold a mapping of keys to values, like configs/quickstart_mask_rcnn.yaml.")
    config = _merge(OmegaConf.structured(Config), given, str(path))
    for override in overrides or []:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"Override {override!r} is not of the form key=value, such as solver.lr=0.01.")
        try:
            values = OmegaConf.from_dotlist([override])
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"Override {override!r} cannot be read: {' '.join(str(error).split())}") from error
        config = _merge(config, values, f"override {override!r}")
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key} cannot be resolved: {reason(error)}") from error
    check_values(values, str(path))
    return config


def find_config(name: str) -> Path:
    """The file that `--config NAME` means. Raises `UserError` that lists where it was looked for."""
    candidates = [Path(name), CONFIG_FOLDER / name, CONFIG_FOLDER / f"{name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    valid = [path.name for path in CONFIG_FOLDER.glob("*.yaml")]
    near = difflib.get_close_matches(Path(name).name, valid, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Available: {', '.join(sorted(valid))}."
    raise UserError(f"Config {name} does not exist, neither as a file nor in {CONFIG_FOLDER}. {hint}")


def save_config(config: DictConfig, path: Path) -> None:
    """Write the complete config, every default included."""
    path.write_text(OmegaConf.to_yaml(config, resolve=True))


def _merge(config: DictConfig, given: DictConfig | ListConfig, source: str) -> DictConfig:
    try:
        return OmegaConf.merge(config, given)
    except TypeError as error:  # a mapping where a list belongs, which OmegaConf does not locate
        raise UserError(f"{source}: {reason(error)}: a list is given as a mapping or the reverse.") from error
    except ConfigKeyError as error:
        parent, _, key = str(error.full_key).rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        valid = list(node) if isinstance(node, DictConfig) else [f for f in DatasetConfig.__dataclass_fields__]
        near = difflib.get_close_matches(key, map(str, valid), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Valid keys: {', '.join(map(str, valid))}."
        raise UserError(f"{source}: unknown key {error.full_key}. {hint}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {error.full_key or 'the config'} cannot be set: {reason(error)}") from error
