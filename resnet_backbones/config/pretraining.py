"""The config of a classifier that a backbone is pretrained in. The defaults are He et al.'s (arXiv 1512.03385 §3.4)."""

from dataclasses import dataclass, field

from .shared import BackboneConfig, SolverConfig


@dataclass
class ImagesConfig:
    """Images in folders that bear their classes' names; datasets/README.md shows the layouts."""

    root: str = ""  # a folder or a tar of it; "" where train and val are shards or whole paths
    train: str = "train"  # below root; or shards, as in "imagenet-train-{000000..001023}.tar", local or a URL
    val: str = "val"
    classes: list[str] | None = None  # null: the folders' names, sorted; for shards those of classes.txt beside them
    num_workers: int = 4  # loader processes on each rank
    repeats: int = 1  # of each image in a batch, each augmented anew, in as many fewer images an epoch
    max_unreadable: int = 10  # so many images are named and left out; one more is an error


@dataclass
class AugmentationConfig:
    crop: str = "shorter_side"  # shorter_side, random_resized (arXiv 1409.4842 §6) or padded
    size: int = 224  # of the crop, px
    shorter_side: list[int] = field(default_factory=lambda: [256, 480])  # range it is drawn from before the crop
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # of random_resized: range of the crop's area
    padding: int = 4  # of padded, on each side
    flip: float = 0.5  # probability of a horizontal flip
    auto_augment: str = "none"  # trivial (arXiv 2103.10158) or rand (1909.13719), two operations
    rand_magnitude: int = 7  # of rand, out of 30
    lighting: float = 0.1  # standard deviation of the colour shift along RGB's principal components (AlexNet §4.1)
    random_erasing: float = 0.0  # probability
    mixup: float = 0.0  # alpha (arXiv 1710.09412); where cutmix is on, too, each batch takes either
    cutmix: float = 0.0  # alpha (arXiv 1905.04899)


@dataclass
class PreprocessingConfig:
    """What the network takes: this goes with its weights, and detectors follow it. null: as the weights that training
    starts from or that are evaluated, or as in the comment."""

    resize: int | None = None  # shorter side in evaluation, px; 256
    size: int | None = None  # of the centre crop in evaluation; 224
    interpolation: str | None = None  # bilinear or bicubic; bilinear
    image_mean: list[float] | None = None  # of RGB in [0, 1]; ImageNet's
    image_std: list[float] | None = None
    per_pixel_mean: bool = False  # subtract the mean image of the training set instead of image_mean


@dataclass
class LossConfig:
    name: str = "cross_entropy"  # bce: binary cross entropy, each class by itself (arXiv 2110.00476 §2)
    label_smoothing: float = 0.0


@dataclass
class PretrainSolverConfig(SolverConfig):
    """`epochs` or `max_iter`, one of them, sets the length; with `epochs`, *_epochs replace steps and warmup_iters."""

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
    views: str = "center"  # center; ten_crop; or multi_scale: whole images and their mirror images at every scale
    scales: list[int] = field(default_factory=lambda: [224, 256, 384, 480, 640])  # shorter sides of multi_scale, px
    batch_size: int = 64  # images on each rank; multi_scale takes one by one
    precise_bn: int = 0  # training batches over which BN's statistics are taken anew before scoring


@dataclass
class PretrainConfig:
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(name="resnet50"))
    data: ImagesConfig = field(default_factory=ImagesConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    solver: PretrainSolverConfig = field(default_factory=PretrainSolverConfig)
    evaluation: ScoreConfig = field(default_factory=ScoreConfig)
    compare: list[str] = field(default_factory=list)  # backbones to train one after the other and draw together
    weights: str | None = None  # of the whole classifier, to evaluate or to start from
    ensemble: list[str] = field(default_factory=list)  # further classifiers; their softmax is averaged with that one's
    output_dir: str = "output"
    seed: int = 0
