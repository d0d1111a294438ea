"""The config of a classifier that a backbone is pretrained in. The defaults are He et al.'s (arXiv 1512.03385 §3.4)."""

from dataclasses import dataclass, field

from .shared import BackboneConfig, SolverConfig


@dataclass
class ImagesConfig:
    """Images in folders named after their classes; docs/data.md shows the layouts."""

    root: str = ""  # a folder or a tar of it; "" if train and val are shards or full paths
    train: str = "train"  # below root; or shards such as "imagenet-train-{000000..001023}.tar", local or a URL
    val: str = "val"
    classes: list[str] | None = None  # null: the names of the folders, sorted; of shards, classes.txt beside them
    num_workers: int = 4  # loader processes per rank
    repeats: int = 1  # repeated augmentation (arXiv 1902.05509): copies of each image in a batch
    max_unreadable: int = 10  # unreadable images that are logged and skipped; one more is an error


@dataclass
class AugmentationConfig:
    crop: str = "shorter_side"  # shorter_side, random_resized (arXiv 1409.4842 §6) or padded
    size: int = 224  # of the crop, px
    shorter_side: list[int] = field(default_factory=lambda: [256, 480])  # of shorter_side: range of the resized side
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # of random_resized: range of the area
    padding: int = 4  # of padded, on each side
    flip: float = 0.5  # probability of a horizontal flip
    auto_augment: str = "none"  # trivial (arXiv 2103.10158) or rand (1909.13719, two operations)
    rand_magnitude: int = 7  # of rand, out of 30
    lighting: float = 0.1  # standard deviation of the color shift along RGB's principal components (AlexNet §4.1)
    random_erasing: float = 0.0  # probability
    mixup: float = 0.0  # alpha (arXiv 1710.09412); with cutmix, each batch gets one of the two
    cutmix: float = 0.0  # alpha (arXiv 1905.04899)


@dataclass
class PreprocessingConfig:
    """The network's input, saved with its weights and used by detectors. null: as in the weights that are evaluated or
    trained from, else the default in the comment."""

    resize: int | None = None  # shorter side in evaluation, px; default 256
    size: int | None = None  # of the center crop in evaluation, px; default 224
    interpolation: str | None = None  # bilinear or bicubic; default bilinear
    image_mean: list[float] | None = None  # of RGB, or each channel, in [0, 1]; default ImageNet's
    image_std: list[float] | None = None
    per_pixel_mean: bool = False  # subtract the mean image of the training set instead of image_mean


@dataclass
class LossConfig:
    name: str = "cross_entropy"  # or bce, binary cross entropy of each class (arXiv 2110.00476 §2)
    label_smoothing: float = 0.0


@dataclass
class PretrainSolverConfig(SolverConfig):
    """Set either `epochs` or `max_iter`; with `epochs`, the *_epochs keys replace steps and warmup_iters."""

    batch_size: int = 256
    lr: float = 0.1
    max_iter: int | None = None
    steps: list[int] = field(default_factory=list)
    warmup_iters: int = 0
    epochs: float | None = None
    step_epochs: list[float] = field(default_factory=list)
    warmup_epochs: float = 0.0


@dataclass
class ScoreConfig:
    period: int | None = None  # iterations between evaluations; null: an epoch; 0: only at the end
    patience: int | None = None  # stop after so many evaluations in a row without a new best; null: never
    views: str = "center"  # center, ten_crop, or multi_scale: whole images and their flips at every scale
    scales: list[int] = field(default_factory=lambda: [224, 256, 384, 480, 640])  # shorter sides of multi_scale, px
    batch_size: int = 64  # images per rank; multi_scale always takes one
    precise_bn: int = 0  # training batches from which the BN statistics are recomputed before each evaluation


@dataclass
class PretrainConfig:
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(name="resnet50"))
    data: ImagesConfig = field(default_factory=ImagesConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    solver: PretrainSolverConfig = field(default_factory=PretrainSolverConfig)
    evaluation: ScoreConfig = field(default_factory=ScoreConfig)
    # Backbones to train in turn and compare: names, with options of `backbone` such as "cifar_resnet20 shortcut=B".
    compare: list[str] = field(default_factory=list)
    weights: str | None = None  # of the whole classifier, to evaluate or to start from
    ensemble: list[str] = field(default_factory=list)  # more classifiers to evaluate together with weights
    output_dir: str = "output"
    seed: int = 0
