"""Weights that torchvision and timm publish, with their preprocessing and class names."""

from dataclasses import asdict
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection

from ..errors import UserError, reason, unknown
from ..optional import import_timm
from ..preprocessing import Preprocessing
from .checkpoint import Checkpoint

# Trained before torchvision 0.8, whose frozen norms divided by sqrt(variance) without an eps.
WITHOUT_EPS = (
    detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1,
    detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
)
EPS = 1e-5  # of every norm here


def torchvision_checkpoint(source: str) -> Checkpoint:
    """The weights at `torchvision://NAME/WEIGHTS`, e.g. `torchvision://resnet50/IMAGENET1K_V2`.

    Raises `UserError` for an unknown name and if the file cannot be downloaded.
    """
    name, _, weights_name = source.removeprefix("torchvision://").partition("/")
    if name not in torchvision.models.list_models():
        raise UserError(f"{source}: " + unknown("torchvision model", name, torchvision.models.list_models()))
    published = torchvision.models.get_model_weights(name)
    if weights_name not in published.__members__:
        raise UserError(f"{source}: " + unknown(f"weights of {name}", weights_name, published.__members__))
    weights = published[weights_name]
    metadata = {"preprocessing": asdict(torchvision_preprocessing(weights.transforms()))}
    if weights.meta.get("categories") and name in torchvision.models.list_models(module=torchvision.models):
        metadata |= {"architecture": {"name": name}, "classes": weights.meta["categories"]}
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
        return Checkpoint(without_eps(state, weights.url), metadata)
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"{source} could not be downloaded from {weights.url} ({error}); download it by hand into {folder}."
        ) from error


def without_eps(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """`state`, changed to compute the same with our eps where `source` is one of `WITHOUT_EPS`, known by its name."""
    if Path(source).name not in {Path(weights.url).name for weights in WITHOUT_EPS}:
        return state
    return {name: t - EPS if name.endswith("running_var") else t for name, t in state.items()}


def torchvision_preprocessing(transforms: nn.Module) -> Preprocessing:
    """What the `transforms()` of torchvision's weights do."""
    if not hasattr(transforms, "crop_size"):  # a detector, which resizes and normalizes its images itself
        return Preprocessing()
    return Preprocessing(
        tuple(transforms.mean),
        tuple(transforms.std),
        resize=transforms.resize_size[0],
        size=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
    )


def timm_checkpoint(source: str) -> Checkpoint:
    """The weights at `timm://NAME.TAG`, e.g. `timm://resnet50.a1_in1k`.

    Raises `UserError` for an unknown name, without timm, and if the file cannot be downloaded.
    """
    timm = import_timm()
    name = source.removeprefix("timm://")
    if name not in timm.list_pretrained():
        raise UserError(f"{source}: " + unknown("timm weights", name, timm.list_pretrained(f"{name.split('.')[0]}*")))
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm downloads with other libraries, each with its own errors
        raise UserError(f"{source} could not be downloaded: {reason(error)}") from error
    data = timm.data.resolve_model_data_config(model)
    size = data["input_size"][-1]
    preprocessing = Preprocessing(
        data["mean"],
        data["std"],
        resize=int(size / data["crop_pct"]),
        size=size,
        interpolation=data["interpolation"],
    )
    return Checkpoint(model.state_dict(), {"preprocessing": asdict(preprocessing)})
