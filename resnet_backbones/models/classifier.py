"""The classifier that backbones are pretrained in."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..preprocessing import Normalize, Preprocessing
from .fpn import FPN
from .naming import hide_child


class Classifier(nn.Module):
    """logits = fc(mean over all positions of the backbone's last feature) (arXiv 1512.03385 §3.3).

    Every family gets this head. In torchvision and timm some have more in theirs, such as VGG's fc6 and fc7 or
    EfficientNet's last convolution.

    Args:
        backbone: any but an FPN.
        num_classes: number of logits.
        preprocessing: normalization of the images, on their device; None takes them as the backbone does.
        augment: of the prepared batch and its labels in training, such as mixup: (images, labels) to the same.
        loss: of logits and labels, (N,) class indices or (N, num_classes) class probabilities.

    Input (N, C, H, W); with `preprocessing` RGB, uint8 or float in [0, 1]. In training `forward(images, labels)` gives
    {"loss_classifier": …} and the top-1 "error" in percent; in evaluation `forward(images)` gives logits
    (N, num_classes). `labels` may also be a dict with that key, as a loader's targets are.

    In the state_dict the backbone's tensors have the backbone's names, beside `fc.weight` and `fc.bias`, so those of
    the residual families go to and from torchvision and timm. `named_parameters()` has `backbone.` in front.

    Raises `UserError` for an FPN, for no classes and for a training step without labels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 1000,
        *,
        preprocessing: Preprocessing | None = None,
        augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        if isinstance(backbone, FPN):
            raise UserError(
                "A classifier takes the last feature of a backbone, not of an FPN; remove _fpn from its name."
            )
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}; it must be at least 1.")
        self.backbone, self.preprocessing, self.augment, self.loss = backbone, preprocessing, augment, loss
        self.prepare = nn.Identity() if preprocessing is None else Normalize(preprocessing)
        self.fc = nn.Linear(list(backbone.output_shape().values())[-1].channels, num_classes)
        hide_child(self, "backbone")

    def forward(self, images: Tensor, labels: Tensor | dict | None = None) -> Tensor | dict[str, Tensor]:
        images = self.prepare(images)
        if not self.training:
            return self.logits(images)
        if labels is None:
            raise UserError("In training a classifier needs labels: classifier(images, labels).")
        labels = labels["labels"] if isinstance(labels, dict) else labels
        if self.augment is not None:
            images, labels = self.augment(images, labels)
        logits = self.logits(images)
        with torch.no_grad():
            hits = logits.argmax(1) == (labels.argmax(1) if labels.ndim == 2 else labels)
        return {"loss_classifier": self.loss(logits, labels), "error": 100 * (1 - hits.float().mean())}

    def logits(self, images: Tensor) -> Tensor:
        *_, feature = self.backbone(images).values()
        return self.fc(feature.mean((2, 3)))


def soft_binary_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross entropy of each class on its own; every class in a mixed image counts fully (arXiv 2110.00476 §2).

    `labels` as in `Classifier`; smoothing moves the targets from {0, 1} to {s / K, 1 - s + s / K}.
    """
    probabilities = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1])
    targets = (probabilities > 0).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets)
