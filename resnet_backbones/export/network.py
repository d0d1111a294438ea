"""What is exported: a network from one tensor to a dict of tensors, with the metadata of its file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..detectors.dense import FCOS, RetinaNet
from ..detectors.ranks import RCNN
from ..errors import UserError
from ..models.backbone import Backbone
from ..models.classifier import Classifier
from ..models.fuse import fuse
from ..preprocessing import input_channels
from .boxes import free
from .dense import DenseGraph
from .rcnn import RCNNGraph

KINDS = {"detection": "image", "classification": "images", "features": "images"}  # and the name of the input


@dataclass
class Network:
    """A network that can be exported.

    Attributes:
        module: in evaluation mode, from a tensor to a dict of tensors.
        eager: the fused model that it was made from, from the same tensor to the same dict.
        kind: one of `KINDS`.
        example: an input.
        outputs: the names of the module's outputs.
        metadata: what the file also holds, JSON-serializable.
        limits: the part of a detector that has its `score_thresh` and `detections_per_img`.
    """

    module: nn.Module
    eager: nn.Module
    kind: str
    example: Tensor
    outputs: Sequence[str]
    metadata: dict
    limits: nn.Module | None = None

    @property
    def input(self) -> str:
        return KINDS[self.kind]

    @property
    def dynamic(self) -> dict[int, str]:
        """The names of the dynamic dimensions of the input."""
        return {2: "height", 3: "width"} | ({} if self.kind == "detection" else {0: "batch"})


class GroupNorm(nn.GroupNorm):
    """Without the check of `F.group_norm` for more than one value, which a dynamic size cannot answer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Detections(nn.Module):
    """A detector that takes lists of images, called with one image (1, C, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.model([image[0]])[0]


class AnySize(nn.Module):
    """A backbone or classifier of images (N, C, H, W) of any number and size, as a dict of its outputs."""

    def __init__(self, model: Backbone | Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        count, _, height, width = images.shape
        outputs = self.model(images[: free(count), :, : free(height), : free(width)])
        return outputs if isinstance(outputs, dict) else {"logits": outputs}


def network_of(model: nn.Module) -> Network:
    """A detector, classifier or backbone of this package as it is exported: a fused copy on the CPU.

    Detectors take one image (1, C, H, W) of any size, as uint8, and give `boxes` (N, 4), absolute xyxy, `labels` (N,),
    from 1, `scores` (N,) and for Mask R-CNN `masks` (N, 1, H, W), probabilities; normalization and resizing are part
    of them. Classifiers take images (N, C, H, W), uint8 if they know their preprocessing, resized and cropped by the
    caller, and give `logits`. Backbones take normalized images (N, C, H, W) and give their features by name.

    Raises `UserError` for a detector of another library.
    """
    model = fuse(model).cpu()
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm
    metadata = {"classes": getattr(model, "classes", None)}
    if isinstance(model, (RCNN, RetinaNet, FCOS)):
        graph = RCNNGraph(model) if isinstance(model, RCNN) else DenseGraph(model)
        has_masks = isinstance(model, RCNN) and model.roi_heads.has_mask()
        outputs = ["boxes", "labels", "scores", *(["masks"] if has_masks else [])]
        module, eager, kind, preprocessing = graph, Detections(model), "detection", model.transform.preprocessing
    elif isinstance(model, Classifier):
        module = eager = AnySize(model)
        kind, outputs, preprocessing = "classification", ["logits"], model.preprocessing
    elif isinstance(model, Backbone):
        module = eager = AnySize(model)
        kind, outputs, preprocessing = "features", list(model.output_shape()), model.preprocessing
    else:
        raise UserError(
            f"A {type(model).__name__} cannot be exported, only the classifiers, backbones and detectors of this "
            "package with detector.library=torchvision."
        )
    takes_uint8 = kind == "detection" or (kind == "classification" and preprocessing is not None)
    metadata |= {"kind": kind, "preprocessing": preprocessing and asdict(preprocessing)}
    channels = input_channels(getattr(model, "backbone", model))
    example = torch.rand(1 if kind == "detection" else 2, channels, 224, 288)
    example = (example * 255).to(torch.uint8) if takes_uint8 else example
    limits = getattr(model, "roi_heads", model) if kind == "detection" else None
    return Network(module.eval(), eager.eval(), kind, example, outputs, metadata, limits)
