"""The losses of the box head, against torchvision's and the papers' formulas."""

import math

import pytest
import torch
from conftest import TINY, coco_overrides, write_coco
from omegaconf import OmegaConf
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import generalized_box_iou

from resnet_backbones import build_backbone
from resnet_backbones.config import load_config
from resnet_backbones.detectors import build_detector
from resnet_backbones.detectors.losses import box_loss, class_loss
from resnet_backbones.detectors.torchvision import mask_rcnn
from resnet_backbones.errors import UserError

LABELS = torch.tensor([0, 2, 1, 0, 3])


@pytest.fixture
def sample():
    """Logits, offsets, target offsets and proposals of five RoIs, two of them background."""
    torch.manual_seed(0)
    corners = torch.rand(2, 5, 2) * 40
    boxes = torch.cat([corners, corners + 5 + torch.rand(2, 5, 2) * 40], 2)
    targets = BoxCoder((10.0, 10, 5, 5)).encode([boxes[0]], [boxes[1]])[0]
    return torch.randn(5, 4), torch.randn(5, 16) * 0.5, targets, boxes[1]


def test_the_default_losses_are_torchvisions(sample):
    logits, offsets, targets, proposals = sample
    classes, boxes = fastrcnn_loss(logits, offsets, [LABELS], [targets])
    torch.testing.assert_close(class_loss(logits, LABELS, []), classes)
    coder = BoxCoder((10.0, 10, 5, 5))
    torch.testing.assert_close(box_loss(offsets, targets, LABELS, proposals, coder, "smooth_l1"), boxes)


def test_the_weighted_class_loss_matches_the_formula():
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.2], [0.3, 0.6, 0.1], [0.25, 0.25, 0.5]]))
    labels = torch.tensor([0, 1, 2])
    weighted = -(math.log(0.7) + 3 * math.log(0.6) + 0.5 * math.log(0.5)) / 3
    assert class_loss(logits, labels, [3.0, 0.5]).item() == pytest.approx(weighted)


def test_giou_loss_is_computed_on_decoded_boxes(sample):
    _, offsets, targets, proposals = sample
    coder = BoxCoder((10.0, 10, 5, 5))
    giou = 0.0
    for k, label in enumerate(LABELS.tolist()):
        if label:
            found = coder.decode_single(offsets[k, 4 * label : 4 * label + 4][None], proposals[k, None])
            truth = coder.decode_single(targets[k, None], proposals[k, None])
            giou += 1 - generalized_box_iou(found, truth).item()
    loss = box_loss(offsets, targets, LABELS, proposals, coder, "giou").item()
    assert loss == pytest.approx(10 * giou / 5, rel=1e-4)


def test_unit_class_weights_match_torchvisions_losses_and_gradients():
    """Equal losses have equal gradients in all three heads."""
    torch.manual_seed(0)
    sizes = {"min_size": [64], "max_size": 96, "box_head_width": 32, "mask_head_width": 16}
    plain = mask_rcnn(build_backbone("resnet18_fpn", fpn_channels=32), 2, **sizes)
    chosen = mask_rcnn(build_backbone("resnet18_fpn", fpn_channels=32), 2, **sizes, class_weights=[1.0, 1.0])
    chosen.load_state_dict(plain.state_dict())
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 5:40, 5:40] = masks[1, 20:60, 30:75] = 1
    boxes = torch.tensor([[5.0, 5, 40, 40], [30, 20, 75, 60]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "seed": 3}
    image = torch.rand(3, 64, 80)
    losses = [model.train()([image], [dict(target)]) for model in (plain, chosen)]
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss)
    for loss in losses:
        sum(loss.values()).backward()
    for (name, mine), (_, theirs) in zip(chosen.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["detector.name=fcos", "detector.box_loss=giou"],
            "box_loss is giou; it must be smooth_l1 where .*name is fcos",
        ),
        (["detector.library=detectron2", "detector.class_weights=[1]"], "must be null where .*is detectron2"),
        (["detector.box_loss=ciou"], "detector.box_loss is ciou; it must be smooth_l1 or giou"),
        (["detector.class_weights=[-1]"], "detector.class_weights is -1.0; it must be from 0"),
    ],
)
def test_invalid_losses_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config("quickstart_mask_rcnn.yaml", overrides)


def test_the_number_of_class_weights_is_checked():
    config = load_config("quickstart_mask_rcnn.yaml", [*TINY, "detector.class_weights=[1, 2]"])
    assert OmegaConf.to_container(config.detector.class_weights) == [1, 2]
    with pytest.raises(UserError, match=r"detector.class_weights is \[1.0, 2.0\]; it must be 3 numbers, one per class"):
        build_detector(config, 3)


def test_training_takes_class_weights_from_the_command_line(tool, tmp_path):
    write_coco(tmp_path)  # two classes
    arguments = [*TINY, *coco_overrides(tmp_path), f"output_dir={tmp_path}/out", "solver.max_iter=1", "solver.steps=[]"]
    config = ["--config", "quickstart_mask_rcnn.yaml"]
    status, _, err = tool("train_net", *config, *arguments, "detector.class_weights=[1,2]")
    assert status == 0, err
    status, _, err = tool("train_net", *config, *arguments, "detector.class_weights=[1,2,3]")
    assert status == 2
    assert "detector.class_weights is [1.0, 2.0, 3.0]; it must be 2 numbers, one per class" in err
