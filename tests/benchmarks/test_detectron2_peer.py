"""detectron2 as a contender of the benchmarks, where it is installed."""

import pytest
import torch
import torchvision.ops as torchvision_ops
from torch import nn

from benchmarks import detection, networks, peers
from benchmarks.settings import Settings
from resnet_backbones import build_backbone

pytest.importorskip("detectron2", reason="detectron2 is not installed; see make test-detectron2")


def test_detectron2_peers_match_our_features_and_trainable_parameters():
    settings = Settings(name="resnet18", size=64, short_side=64)
    for name, make_peer in (("resnet18", peers.peer_backbone), ("resnet18_fpn", peers.peer_fpn)):
        images = torch.rand(1, 3, 64, 64)
        state = networks.settle(build_backbone(name), images).state_dict()
        ours, theirs = networks.frozen_backbone(name, state), make_peer("detectron2", "resnet18", state)
        with torch.no_grad():
            ours, theirs, images = ours.double(), theirs.double(), images.double()
            assert largest_difference(ours.eval()(images), theirs.eval()(images)) < 1e-9
        assert trained_numbers(theirs) == trained_numbers(ours)

    state = detection.shared_state(settings)
    ours, theirs = (detection.build_detector(who, settings, state) for who in ("ours", "detectron2"))
    background_boxes = 4 * (1024 + 1)  # which torchvision's heads have and never use
    assert trained_numbers(theirs) == trained_numbers(ours) - background_boxes
    images, targets = detection.make_batch(settings)
    assert all(torch.isfinite(loss) for loss in theirs.train()(images, targets).values())
    found = [detection.inference(who, m, settings)()[0] for who, m in (("ours", ours), ("detectron2", theirs))]
    boxes, rivals = found[0]["boxes"], found[1]["instances"].pred_boxes.tensor
    near = torchvision_ops.box_iou(boxes, rivals).amax(1) > 0.7  # its anchors are not rounded, so not all of them
    assert len(boxes) > 20
    assert near.float().mean() > 0.8


def trained_numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def largest_difference(ours: dict, theirs: dict) -> float:
    assert list(ours) == list(theirs)
    return max(float((theirs[k] - f).abs().max() / f.abs().max()) for k, f in ours.items())
