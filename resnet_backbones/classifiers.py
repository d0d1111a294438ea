"""Image classification, on which backbones are pretrained."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import told_architecture
from .backbones import build_backbone
from .errors import UserError
from .models.fpn import FPN
from .models.initialization import SkipRandomInit
from .models.naming import hide_child
from .preprocessing import Normalize, Preprocessing
from .weights import check_architecture, load_state_dict, read_ours


class Classifier(nn.Module):
    """logits = fc(mean over all positions of the backbone's last feature) (arXiv 1512.03385 §3.3).

    Every family gets this head. In torchvision and timm some have more in theirs, such as VGG's fc6 and fc7 or
    EfficientNet's last convolution.

    Args:
        backbone: any but an FPN.
        num_classes: length of the logits.
        preprocessing: what is done to the images, on their device; None takes them as the backbone does.
        augment: of the prepared batch and its labels in training, such as mixup: (images, labels) to the same.
        loss: of logits and labels, (N,) indices of classes or (N, num_classes) shares.

    Input (N, C, H, W); with `preprocessing` RGB, uint8 or float in [0, 1]. In training `forward(images, labels)` gives
    {"loss_classifier": …} and the top-1 "error" in percent; in evaluation `forward(images)` gives logits
    (N, num_classes). `labels` may stand in a dict under that name, as in a loader's targets.

    The state_dict has the backbone's names and `fc.weight`, `fc.bias`, so those of the residual families go to and
    from torchvision and timm. `named_parameters()` has a `backbone.` before the former.

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
            raise UserError("A classifier takes the last feature of a backbone, not of an FPN; leave out the _fpn.")
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
    """Binary cross entropy of every class by itself; every class that is mixed in counts in full (arXiv 2110.00476 §2).

    `labels` as in `Classifier`; smoothing draws the targets from {0, 1} to {s / K, 1 - s + s / K}.
    """
    shares = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1])
    targets = (shares > 0).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets)


def build_classifier(
    name: str,
    num_classes: int = 1000,
    *,
    preprocessing: Preprocessing | None = None,
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    **options,
) -> Classifier:
    """A classifier on the backbone `name`; `options` are those of `build_backbone`, whose errors and warnings it has.

    The backbone gives its last feature only; `out_features=["res4"]` ends it earlier. `weights` are the backbone's.
    """
    shape_options = {k: v for k, v in options.items() if k not in ("norm", "freeze_at", "weights")}
    with torch.device("meta"):
        *_, last = build_backbone(name, **shape_options).output_shape()
    backbone = build_backbone(name, **options | {"out_features": [last]})
    return Classifier(backbone, num_classes, preprocessing=preprocessing, augment=augment, loss=loss)


def load_classifier(source: str, name: str | None = None, **options) -> Classifier:
    """The classifier at `source`, such as a `model.safetensors` of `tools/pretrain.py`, with its preprocessing.

    `name` and `options` of `build_classifier` are needed where the file does not tell its architecture. Raises
    `UserError` where it tells another, or holds no classifier of this form.
    """
    checkpoint = read_ours(source)
    state = checkpoint.state
    if name is None:
        name, told = told_architecture(checkpoint, source)
        options = told | options
    if name is None:
        raise UserError(f"{source} does not tell its architecture; give the backbone's name.")
    if "fc.weight" not in state or state["fc.weight"].ndim != 2:
        raise UserError(f"{source} holds no classifier with a last layer called fc; give it as backbone.weights.")
    classes = checkpoint.metadata.get("classes")
    if classes and len(classes) != len(state["fc.weight"]):
        raise UserError(f"{source} names {len(classes)} classes, but tells {len(state['fc.weight'])} apart.")
    with SkipRandomInit():
        model = build_classifier(name, len(state["fc.weight"]), preprocessing=checkpoint.preprocessing(), **options)
    check_architecture(model.backbone, checkpoint, source)
    load_state_dict(model, state, source)
    model.backbone.preprocessing, model.classes = checkpoint.preprocessing(), classes
    return model
