"""What makes training fast changes nothing else: the losses of 50 steps with and without it."""

import pytest
import torch
from helpers import randomize_statistics
from omegaconf import OmegaConf
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from resnet_backbones import FrozenBatchNorm2d, build_backbone
from resnet_backbones.config import load_config
from resnet_backbones.detectors.torchvision import faster_rcnn
from resnet_backbones.models.compile import compile_backbone
from resnet_backbones.training.solver import build_optimizer

STEPS = 50
# All proposals are kept and taken, so that no decision changes with the last bit of a score.
SMOOTH = {
    "min_size": [96], "max_size": 128, "rpn_nms_thresh": 1.0, "rpn_pre_nms_top_n_train": 10**5,
    "rpn_post_nms_top_n_train": 10**5, "box_batch_size_per_image": 10**5, "rpn_batch_size_per_image": 10**5,
    "box_head_width": 64,
}  # fmt: skip


def detector() -> nn.Module:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18_fpn", norm="BN", fpn_channels=32)
    randomize_statistics(backbone)
    for block in (m for m in backbone.modules() if hasattr(m, "bn2")):
        nn.init.constant_(block.bn2.weight, 0.2)
    FrozenBatchNorm2d.convert(backbone.body)
    return faster_rcnn(backbone, 3, **SMOOTH).train()


def losses(model: nn.Module, fused: bool = True) -> list[float]:
    solver = OmegaConf.merge(load_config("quickstart_mask_rcnn", []).solver, {"lr": 1e-3})
    optimizer = build_optimizer(model, solver)
    for group in optimizer.param_groups:
        group["fused"] = fused
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


def without_folding(model: nn.Module) -> None:
    for module in model.backbone.modules():  # what has hooks is called as it is
        module.register_forward_pre_hook(lambda *_: None)


def with_torchvisions_roi_align(model: nn.Module) -> None:
    model.roi_heads.box_roi_pool = MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], 7, 2)


def in_the_other_format(model: nn.Module) -> None:
    model.backbone.body.maxpool.register_forward_hook(lambda module, inputs, x: x.contiguous())


CHANGES = {
    "norms folded into convolutions": without_folding,
    "RoIAlign as a sum": with_torchvisions_roi_align,
    "channels_last": in_the_other_format,
    "compiled": lambda model: compile_backbone(model.backbone),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_losses_of_fifty_steps(change):
    changed = detector()
    change(changed)
    fast = losses(detector())
    assert fast[-1] < 0.9 * fast[0]
    assert losses(changed) == pytest.approx(fast, rel=1e-4)


@pytest.mark.slow
def test_losses_of_fifty_steps_without_the_fused_optimizer():
    assert losses(detector(), fused=False) == pytest.approx(losses(detector()), rel=1e-4)
