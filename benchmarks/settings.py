"""What is measured, and how often."""

from dataclasses import dataclass, fields

from resnet_backbones.errors import UserError, unknown

PARTS = ("backbone", "fpn", "detector", "memory", "loader", "evaluator", "profile", "ablation", "deployment")
AMP = ("none", "bf16")


@dataclass(frozen=True)
class Settings:
    """The command line of `benchmarks/speed.py`.

    Raises `UserError` for an impossible value.
    """

    only: tuple[str, ...] = PARTS
    name: str = "resnet50"  # of the backbone, the FPN's body and the detector's
    size: int = 512  # side of the images of backbone and fpn, pixels
    batch: int = 1  # of those images
    short_side: int = 400  # of the detector's images; the longer one is 1.5 times as long
    jpegs: int = 64  # that the loaders read
    images: int = 5000  # that the evaluators score, of 100 detections each
    rounds: int = 5
    threads: int | None = None  # of torch; None leaves its own choice
    device: str = "cpu"
    amp: str = "none"
    compile: bool = False  # also backbones and FPNs under torch.compile

    def __post_init__(self) -> None:
        for part in self.only:
            if part not in PARTS:
                raise UserError(unknown("part", part, PARTS))
        if self.amp not in AMP:
            raise UserError(unknown("--amp", self.amp, AMP))
        if self.device not in ("cpu", "cuda"):
            raise UserError(unknown("--device", self.device, ("cpu", "cuda")))
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise UserError(f"--{field.name.replace('_', '-')} is {value}; it must be at least 1.")
        if self.short_side < 32 or self.size < 32:
            raise UserError("--size and --short-side must be at least 32, the stride of res5.")
