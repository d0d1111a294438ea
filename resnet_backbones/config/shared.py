"""The sections that configs of detectors and classifiers share."""

from dataclasses import dataclass, field


@dataclass
class BackboneConfig:
    """The arguments of `build_backbone`."""

    name: str = "resnet50_fpn"  # a name that `resnet-backbones list` prints, or timm:NAME; with _fpn for an FPN
    in_channels: int | None = None  # of the images; null: 3, RGB; 1 is gray, 4 RGBA or what a TIFF holds
    norm: str = "BN"  # BN, FrozenBN, SyncBN, GN or none
    freeze_at: int = 0  # 0 nothing, 1 stem, 2 stem and res2, … 5 everything
    weights: str | None = None  # a file, a URL, hf://… or torchvision://…; null trains from scratch
    out_features: list[str] | None = None  # null: the backbone's default, p2 … p6 for an FPN
    fpn_channels: int = 256
    fpn_norm: str = "none"
    fpn_p6_input: str = "res5"  # what p6 is made from if there is a p7: res5 (RetinaNet) or p5 (FCOS)

    # Variants of a residual family; null keeps the family's default. `build_backbone` explains them.
    groups: int | None = None  # of a bottleneck's 3x3, the cardinality; width_per_group channels each for 64 planes
    width_per_group: int | None = None
    shortcut: str | None = None  # A, A_centered, B, C, D, B3x3 or none
    stride_in_1x1: bool | None = None  # the original placement, in the first 1x1 of a bottleneck
    output_stride: int | None = None  # 8 or 16: res5 (and res4) dilated instead of strided, for heads without FPN
    dilate_first: bool | None = None  # with output_stride: also dilate the convolution that was strided
    deform_on: list[str] | None = None  # stages whose 3x3 is deformable, such as [res3, res4, res5]
    deform_modulated: bool | None = None  # DCNv2, with a mask
    drop_path: float | None = None  # stochastic depth: drop probability of the last block
    zero_init_residual: bool | None = None
    checkpoint_stages: list[str] | None = None  # stages that recompute activations to save memory


@dataclass
class SolverConfig:
    batch_size: int = 16  # images per optimizer step, over all ranks and accumulated parts
    reference_batch_size: int | None = None  # that lr and schedule are for; they scale linearly to batch_size
    accumulate: int = 1  # gradient accumulation: parts in which a rank computes its share of the batch
    optimizer: str = "sgd"  # sgd, adamw or lamb (which needs timm)
    lr: float = 0.02
    momentum: float = 0.9  # of sgd
    nesterov: bool = False
    weight_decay: float = 1e-4
    norm_weight_decay: float | None = None  # for weight and bias of norms; null: weight_decay
    schedule: str = "steps"  # or cosine, to zero
    steps: list[int] = field(default_factory=lambda: [60000, 80000])  # iterations at which lr is multiplied by gamma
    gamma: float = 0.1
    max_iter: int = 90000
    warmup_method: str = "linear"  # from warmup_factor up to lr; or constant, at warmup_factor
    warmup_iters: int = 1000
    warmup_factor: float = 0.001  # fraction of lr at which the warm-up starts
    clip_norm: float | None = None  # maximum gradient norm over all parameters
    ema_decay: float | None = None  # evaluate and save an exponential moving average of the weights, e.g. 0.999
    ema_period: int = 1  # iterations between its updates
    max_nonfinite: int = 2  # steps skipped because loss or gradients are not finite; one more ends the run
    amp: str = "none"  # none, bf16 or fp16
    channels_last: bool | None = None  # memory format; null: true on a CPU if the model has no live BN or GN
    compile: str = "none"  # torch.compile of the backbone and FPN: none, default or reduce-overhead (CUDA graphs)
    checkpoint_period: int = 5000  # iterations between saves of last.pt; 0: only at the end
    keep_checkpoints: int = 2  # last.pt and, from earlier saves, last-1.pt …
    log_period: int = 20
    deterministic: bool = False  # only deterministic kernels; the same run twice gives the same weights
