"""Image classification, on which backbones are pretrained."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import build_backbone
from .errors import UserError
from .fpn import FPN


class Classifier(nn.Module):
    """logits = fc(mean over all positions of the backbone's last feature) (arXiv 1512.03385 §3.3).

    Every family gets this head. In torchvision and timm some have more in theirs, such as VGG's fc6 and fc7 or
    EfficientNet's last convolution.

    Args:
        backbone: any but an FPN.
        num_classes: length of the logits.

    Input (N, C, H, W). In training `forward(images, labels)` gives {"loss_classifier": cross entropy}, labels being
    (N,) indices of classes; in evaluation `forward(images)` gives logits (N, num_classes).

    The state_dict has the backbone's names and `fc.weight`, `fc.bias`, so those of the residual families go to and
    from torchvision and timm. `named_parameters()` has a `backbone.` before the former.

    Raises `UserError` for an FPN, for no classes and for a training step without labels.
    """

    def __init__(self, backbone: nn.Module, num_classes: int = 1000) -> None:
        super().__init__()
        if isinstance(backbone, FPN):
            raise UserError("A classifier takes the last feature of a backbone, not of an FPN; leave out the _fpn.")
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}; it must be at least 1.")
        self.backbone = backbone
        self.fc = nn.Linear(list(backbone.output_shape().values())[-1].channels, num_classes)
        self.register_state_dict_post_hook(hide_backbone)
        self.register_load_state_dict_pre_hook(reveal_backbone)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        *_, feature = self.backbone(images).values()
        logits = self.fc(feature.mean((2, 3)))
        if not self.training:
            return logits
        if labels is None:
            raise UserError("In training a classifier needs labels: classifier(images, labels).")
        return {"loss_classifier": F.cross_entropy(logits, labels)}


def hide_backbone(module: nn.Module, state: dict, prefix: str, *_) -> None:
    """In `state`, take `backbone.` off the names."""
    for key in [key for key in state if key.startswith(f"{prefix}backbone.")]:
        state[prefix + key.removeprefix(f"{prefix}backbone.")] = state.pop(key)
    for key in (f"{prefix}fc.weight", f"{prefix}fc.bias"):
        state[key] = state.pop(key)  # last, as in torchvision


def reveal_backbone(module: nn.Module, state: dict, prefix: str, *_) -> None:
    """In `state`, put `backbone.` before all names but those of fc."""
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(f"{prefix}fc.")]:
        state[f"{prefix}backbone.{key.removeprefix(prefix)}"] = state.pop(key)


def build_classifier(name: str, num_classes: int = 1000, **options) -> Classifier:
    """A classifier on the backbone `name`; `options` are those of `build_backbone`, whose errors and warnings it has.

    The backbone gives its last feature only; `out_features=["res4"]` ends it earlier. `weights` are the backbone's.
    """
    shape_options = {k: v for k, v in options.items() if k not in ("norm", "freeze_at", "weights")}
    with torch.device("meta"):
        *_, last = build_backbone(name, **shape_options).output_shape()
    return Classifier(build_backbone(name, **options | {"out_features": [last]}), num_classes)
