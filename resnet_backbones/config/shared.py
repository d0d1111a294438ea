"""The parts of a config that detection and pretraining have in common."""

from dataclasses import dataclass, field


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
    dilate_first: bool | None = None  # with output_stride: dilate the convolution that was strided, too
    deform_on: list[str] | None = None  # stages whose 3x3 is deformable, such as [res3, res4, res5]
    deform_modulated: bool | None = None  # version 2, with a mask
    drop_path: float | None = None  # stochastic depth, the last block's probability
    zero_init_residual: bool | None = None
    checkpoint_stages: list[str] | None = None  # stages that recompute activations to save memory


@dataclass
class SolverConfig:
    batch_size: int = 16  # images in an optimiser step, over all ranks and accumulated parts
    reference_batch_size: int | None = None  # lr and schedule are given for this batch; scaled to batch_size linearly
    accumulate: int = 1  # parts in which a rank computes its share of the batch
    optimizer: str = "sgd"  # sgd, adamw or lamb (which needs timm)
    lr: float = 0.02
    momentum: float = 0.9  # of sgd
    nesterov: bool = False
    weight_decay: float = 1e-4
    norm_weight_decay: float | None = None  # of the norms' scales and shifts; null: weight_decay
    schedule: str = "steps"  # steps or cosine (to zero)
    steps: list[int] = field(default_factory=lambda: [60000, 80000])  # iterations at which lr is multiplied by gamma
    gamma: float = 0.1
    max_iter: int = 90000
    warmup_method: str = "linear"  # from warmup_factor up to lr; constant: at warmup_factor until its end
    warmup_iters: int = 1000
    warmup_factor: float = 0.001  # of lr, where the warm-up starts
    clip_norm: float | None = None  # largest gradient norm over all parameters
    ema_decay: float | None = None  # score and keep an exponential moving average of the weights; 0.999, say
    ema_period: int = 1  # iterations between its updates
    max_nonfinite: int = 2  # steps left out because loss or gradients are not finite; one more ends the run
    amp: str = "none"  # none, bf16 or fp16
    channels_last: bool = False  # memory format of the whole model's weights and of the images
    compile: str = (
        "none"  # torch.compile of the backbone and its FPN: default, or reduce-overhead (CUDA graphs); or none
    )
    checkpoint_period: int = 5000  # iterations between writes of last.pt; 0: only at the end
    keep_checkpoints: int = 2  # last.pt and, from the writes before, last-1.pt …
    log_period: int = 20
    deterministic: bool = False  # only deterministic kernels; the same run twice gives the same weights
