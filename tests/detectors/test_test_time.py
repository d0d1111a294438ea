"""Test-time augmentation: no change at the same size, and mirrored detections for a mirrored image."""

import pytest
import torch
from conftest import write_coco
from helpers import save_detector

from resnet_backbones.detectors.test_time import MultiView, vote


@pytest.fixture(params=["mask_rcnn", "faster_rcnn"])
def detector(request, tmp_path):
    write_coco(tmp_path)
    torch.manual_seed(0)
    return save_detector(tmp_path, request.param)[0]


def find(model, image):
    with torch.no_grad():
        return model([image])[0]


def test_one_view_at_the_detectors_size_changes_nothing(detector):
    image, size = torch.rand(3, 60, 80), detector.transform.min_size[-1]
    plain = find(detector, image)
    for key, value in find(MultiView(detector, [size], False, 0.99, 100), image).items():
        torch.testing.assert_close(value, plain[key], msg=key)


def test_detections_of_a_mirrored_image_are_mirrored(detector):
    image, sizes = torch.rand(3, 60, 80), [48, 64]
    views = MultiView(detector, sizes, True, 0.5, 100)
    found, mirrored = find(views, image), find(views, image.flip(-1))
    assert len(found["boxes"]) > 7  # more than the detector gives for one view
    order, other = (output["scores"].argsort(descending=True, stable=True) for output in (found, mirrored))
    torch.testing.assert_close(found["scores"][order], mirrored["scores"][other])
    boxes = mirrored["boxes"][other]
    boxes[:, [0, 2]] = 80 - boxes[:, [2, 0]]
    torch.testing.assert_close(found["boxes"][order], boxes)
    if "masks" in found:
        assert found["masks"].shape == (len(order), 1, 60, 80)
        same = (found["masks"][order] > 0.5) == (mirrored["masks"][other].flip(-1) > 0.5)
        assert same.float().mean() > 0.999
    assert find(detector, image)["boxes"].shape == (7, 4)


def test_the_network_sees_each_size_plain_and_flipped(detector):
    seen, detector.transform.max_size = [], 1000
    detector.backbone.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[-2:])))
    find(MultiView(detector, [32, 64], True, 0.5, 10), torch.rand(3, 60, 80))
    assert seen == [(32, 64)] * 2 + [(64, 96)] * 2  # 32 x 42 and 64 x 85, padded to multiples of 32


def test_box_voting_averages_overlapping_boxes_by_score():
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [5, 5, 15, 15]]),
        "labels": torch.tensor([1, 1, 2, 1]),
        "scores": torch.tensor([0.6, 0.2, 0.9, 0.5]),
    }
    voted = vote(found["boxes"][:1], found["labels"][:1], found)  # the third is of another class
    torch.testing.assert_close(voted, torch.tensor([[0.25, 0, 10.25, 10]]))
