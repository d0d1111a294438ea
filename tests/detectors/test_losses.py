"""The GIoU loss of the box head, against the formula and torchvision's heads."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import generalized_box_iou

from resnet_backbones import build_backbone
from resnet_backbones.config import load_config
from resnet_backbones.detectors.losses import giou_loss
from resnet_backbones.detectors.torchvision import mask_rcnn
from resnet_backbones.errors import UserError


def test_giou_loss_is_computed_on_decoded_boxes():
    labels = torch.tensor([0, 2, 1, 0, 3])
    corners = torch.rand(2, 5, 2) * 40
    matched, proposals = torch.cat([corners, corners + 5 + torch.rand(2, 5, 2) * 40], 2)
    coder = BoxCoder((10.0, 10, 5, 5))
    targets, offsets = coder.encode([matched], [proposals])[0], torch.randn(5, 16) * 0.5
    expected = 0.0
    for k, label in enumerate(labels.tolist()):
        if label:
            found = coder.decode_single(offsets[k, 4 * label : 4 * label + 4][None], proposals[k, None])
            expected += 1 - generalized_box_iou(found, matched[k, None]).item()
    loss = giou_loss(offsets, targets, labels, proposals, coder).item()
    assert loss == pytest.approx(10 * expected / 5, rel=1e-4)


def test_giou_changes_only_the_loss_of_the_boxes():
    sizes = {"min_size": [64], "max_size": 96, "box_head_width": 32, "mask_head_width": 16}
    plain = mask_rcnn(build_backbone("resnet18_fpn", fpn_channels=32), 2, **sizes)
    giou = mask_rcnn(build_backbone("resnet18_fpn", fpn_channels=32), 2, **sizes, box_loss="giou")
    giou.load_state_dict(plain.state_dict())
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 5:40, 5:40] = masks[1, 20:60, 30:75] = 1
    boxes = torch.tensor([[5.0, 5, 40, 40], [30, 20, 75, 60]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "seed": 3}
    image = torch.rand(3, 64, 80)
    losses, others = [model.train()([image], [dict(target)]) for model in (plain, giou)]
    assert losses.keys() == others.keys()
    assert not torch.isclose(losses.pop("loss_box_reg"), others.pop("loss_box_reg"))
    for name, loss in losses.items():
        torch.testing.assert_close(others[name], loss)
    for loss in (losses, others):
        sum(loss.values()).backward()
    for (name, mine), (_, theirs) in zip(giou.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["detector.name=fcos", "detector.box_loss=giou"],
            "box_loss is giou; it must be smooth_l1 where detector.name is fcos, which has no box head",
        ),
        (["detector.box_loss=ciou"], "detector.box_loss is ciou; it must be smooth_l1 or giou"),
    ],
)
def test_invalid_losses_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config("quickstart_mask_rcnn.yaml", overrides)
