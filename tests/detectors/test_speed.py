"""Optimizations for speed leave the losses of 50 training steps unchanged."""

import pytest
import torch
from helpers import randomize_statistics
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from resnet_backbones import FrozenBatchNorm2d, build_backbone, fold_norms
from resnet_backbones.detectors.torchvision import faster_rcnn
from resnet_backbones.models.compile import compile_backbone

STEPS = 50
# All proposals are kept and sampled, so that no selection flips with the last bit of a score.
SMOOTH = {
    "min_size": [64], "max_size": 96, "rpn_nms_thresh": 1.0, "rpn_pre_nms_top_n_train": 10**5,
    "rpn_post_nms_top_n_train": 10**5, "box_batch_size_per_image": 10**5, "rpn_batch_size_per_image": 10**5,
    "box_head_width": 32,
}  # fmt: skip


def detector() -> nn.Module:
    """A Faster R-CNN with FrozenBN, always with the same weights."""
    torch.manual_seed(0)
    backbone = build_backbone("resnet18_fpn", norm="BN", fpn_channels=32)
    randomize_statistics(backbone)
    for block in (m for m in backbone.modules() if hasattr(m, "bn2")):
        nn.init.constant_(block.bn2.weight, 0.2)
    FrozenBatchNorm2d.convert(backbone.body)
    return faster_rcnn(backbone, 3, **SMOOTH).train()


def losses(model: nn.Module) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    torch.manual_seed(1)
    images = [torch.rand(3, 96, 128), torch.rand(3, 120, 90)]
    boxes = torch.tensor([[5.0, 10, 60, 70], [30, 20, 88, 90]])
    found = []
    for _ in range(STEPS):
        targets = [{"boxes": boxes.clone(), "labels": torch.tensor([1, 3])} for _ in images]
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.fixture(scope="module")
def plain() -> list[float]:
    """The baseline: norms not folded, contiguous memory format, torchvision's RoIAlign."""
    model = detector()
    model.roi_heads.box_roi_pool = MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], 7, 2)
    return losses(model)


CHANGES = {
    "RoIAlign as a sum": lambda model: None,  # ours as built
    "folded norms": fold_norms,
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "compiled": lambda model: compile_backbone(model.backbone),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_losses_of_fifty_steps_are_unchanged(plain, change):
    model = detector()
    change(model)
    assert plain[-1] < 0.9 * plain[0]
    assert losses(model) == pytest.approx(plain, rel=1e-4)
