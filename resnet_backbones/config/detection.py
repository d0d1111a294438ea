"""The config of a detector: these dataclasses are its schema, its defaults and its documentation."""

from dataclasses import dataclass, field

from .shared import BackboneConfig, SolverConfig


@dataclass
class DetectorConfig:
    """`library` and `name` select the function `detectors.LIBRARY.NAME`, the rest are its arguments."""

    library: str = "torchvision"
    name: str = "faster_rcnn"  # mask_rcnn, retinanet or fcos

    # The shorter side is resized to one of min_size, drawn per image in training and the last one in evaluation, unless
    # the longer side would exceed max_size. Mean and std are of each of backbone.in_channels, in [0, 1]; null takes
    # those of the backbone's weights, or ImageNet's if the weights have none, averaged where there is no RGB.
    min_size: list[int] = field(default_factory=lambda: [800])
    max_size: int = 1333
    image_mean: list[float] | None = None
    image_std: list[float] | None = None

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
    box_loss: str = "smooth_l1"  # or giou: of the box head of faster_rcnn and mask_rcnn

    topk_candidates: int = 1000  # retinanet and fcos: per level before NMS
    center_sampling_radius: float = 1.5  # fcos: in strides

    mask_pool_size: int = 14  # mask_*: mask_rcnn only
    mask_head_width: int = 256
    mask_head_depth: int = 4


@dataclass
class DatasetConfig:
    """A user's own data set."""

    format: str | None = None  # coco, voc, yolo, labelme, cvat or shapes; null: guessed from the files, and logged
    root: str = ""  # the folder of the images, or a devkit's, or that of YOLO's data.yaml
    annotations: str | None = None  # the JSON, XML or data.yaml file, or a folder of them; null: in root
    # A list such as trainval in ImageSets/Main, or train.txt in root; a folder in root; a key of data.yaml; a fraction
    # such as 0.8, disjoint from the others of the data set; or rest, what no fraction takes. null: all images.
    split: str | None = None
    split_seed: int = 0  # of the shuffle that fractions are taken from
    classes: list[str] | None = None  # names in label order, others are left out; null: all names


@dataclass
class DataConfig:
    train: list[str] = field(default_factory=lambda: ["shapes_train"])
    test: list[str] = field(default_factory=lambda: ["shapes_val"])
    num_workers: int = 4  # loader processes per rank
    flip: float = 0.5  # probability of a horizontal flip in training
    photometric: bool = False  # SSD's distortion of brightness, contrast, saturation, hue and the order of R, G and B
    scale_jitter: list[float] | None = None  # large-scale jitter: the range of the factor, such as [0.1, 2.0]
    copy_paste: float = 0.0  # probability that objects of another image are pasted; mask_rcnn only
    repeat_threshold: float | None = None  # repeat images of classes that a smaller fraction of the images has
    keep_empty: bool = False  # also train on images without objects
    max_unreadable: int = 0  # unreadable images that are logged and skipped; one more is an error
    # Batches of only wide or only tall images: less padding. If shape correlates with content, batch statistics differ
    # from those of the data, so null is true only if the model has no live BN.
    aspect_ratio_grouping: bool | None = None


@dataclass
class EvaluationConfig:
    period: int = 0  # iterations between evaluations; 0: only at the end
    patience: int | None = None  # stop after so many evaluations in a row without a new best; null: never
    backend: str = "hotcoco"  # or pycocotools, which is slower and gives the same metrics
    tta_sizes: list[int] | None = None  # test-time augmentation: shorter sides to resize each image to
    tta_flip: bool = False  # also run on each image mirrored
    samples: int = 8  # images drawn to samples/
    sample_score: float = 0.5  # minimum score of the detections drawn


@dataclass
class Config:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)  # your own, by the name used in data
    weights: str | None = None  # of the whole detector, to evaluate or to start from
    output_dir: str = "output"
    seed: int = 0
