"""The detectors that are compared, with the same weights, their batch and their training step."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbones import build_backbone, fold_norms, fuse
from resnet_backbones.detectors.torchvision import faster_rcnn
from resnet_backbones.preprocessing import Normalize, Preprocessing

from .networks import autocast, compiled, frozen_backbone, settle
from .peers import BN_IN_EVAL, longest_side, peer_detector
from .settings import Settings

CLASSES = 90  # COCO's, as torchvision counts them
OBJECTS = 10  # per image
SPREAD = 0.05  # of the weights of the class scores, which lets about a hundred detections pass
LEARNING_RATE = 1e-6  # so small that all rounds have the same weights


def build_detector(who: str, settings: Settings, state: dict[str, Tensor]) -> nn.Module:
    """Faster R-CNN, ours or a peer's, with weights of `state`, on the device. Raises `MissingError`."""
    if who == "ours":
        model = _ours(frozen_backbone(f"{settings.name}_fpn"), settings)
        model.load_state_dict(state)
    else:
        model = peer_detector(who, settings.name, CLASSES, settings.short_side, state)
    return model.to(settings.device)


def shared_state(settings: Settings) -> dict[str, Tensor]:
    """Random weights that behave like trained ones."""
    torch.manual_seed(0)
    model = _ours(build_backbone(f"{settings.name}_fpn"), settings)
    images = torch.stack([image.cpu() for image in make_batch(settings)[0]])
    settle(model.backbone, Normalize(Preprocessing())(images))
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=SPREAD)
    return model.state_dict()


def _ours(backbone: nn.Module, settings: Settings) -> nn.Module:
    sizes = {"min_size": [settings.short_side], "max_size": longest_side(settings.short_side)}
    return faster_rcnn(backbone, CLASSES, **sizes)


def make_batch(settings: Settings) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two smooth random pictures with some noise, as photographs are, and their objects."""
    draws = torch.Generator().manual_seed(0)
    height, width = settings.short_side, settings.short_side * 3 // 2
    images, targets = [], []
    for _ in range(2):
        smooth = F.interpolate(torch.rand(1, 3, 8, 12, generator=draws), (height, width), mode="bicubic")[0]
        images.append((smooth + 0.05 * torch.randn(3, height, width, generator=draws)).clamp(0, 1))
        corners = torch.rand(OBJECTS, 2, 2, generator=draws).sort(1).values
        boxes = (corners * torch.tensor([width - 8, height - 8]) + torch.tensor([[0, 0], [8, 8]])).flatten(1)
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), generator=draws)
        targets.append({"boxes": boxes.to(settings.device), "labels": labels.to(settings.device)})
    return [image.to(settings.device) for image in images], targets


def training_step(who: str, model: nn.Module, settings: Settings, compile: bool = False) -> Callable[[], object]:
    """Forward, backward and a step of SGD with momentum; ours prepared as our trainer prepares it."""
    if who == "ours":
        fold_norms(model).to(memory_format=torch.channels_last)
    if compile:
        model.backbone = compiled(model.backbone)
    model.train()
    if who == BN_IN_EVAL:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return sgd_step(model, settings)


def sgd_step(model: nn.Module, settings: Settings, fused: bool = False) -> Callable[[], object]:
    """A step of SGD with momentum on a detector as it is."""
    images, targets = make_batch(settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, LEARNING_RATE, momentum=0.9, weight_decay=1e-4, fused=fused)

    def step() -> None:
        with autocast(settings):
            loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference(who: str, model: nn.Module, settings: Settings, compile: bool = False) -> Callable[[], object]:
    """Detections in one image; ours fused, as the evaluator runs it."""
    image = make_batch(settings)[0][:1]
    if who == "ours":
        model = fuse(model).to(memory_format=torch.channels_last)
    if compile:
        model.backbone = compiled(model.backbone)
    model.eval()

    def run() -> list[dict]:
        with torch.no_grad(), autocast(settings):
            return model(image)

    return run
