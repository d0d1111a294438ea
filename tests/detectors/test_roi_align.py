"""RoIAlign as a weighted sum of feature vectors, against torchvision's kernel."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from resnet_backbones.detectors.roi_align import PyramidRoIAlign

SIZES = [(96, 128), (90, 101)]  # the second is padded to the first
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}


def pyramid(levels: dict[str, int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {name: torch.randn(2, 5, 96 // s, 128 // s, dtype=dtype).requires_grad_() for name, s in levels.items()}


def boxes(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Boxes of all sizes, some without area, some at the border and more than a cell beyond it."""
    corners = torch.rand(300, 2, dtype=dtype) * torch.tensor([140.0, 110], dtype=dtype) - 10
    ends = corners + torch.rand(300, 2, dtype=dtype).square() * 140
    odd = [[0, 0, 128, 96], [5, 5, 5, 5], [-200, -200, -150, -150], [127, 95, 400, 300], [30, 40, 30, 90]]
    return [torch.cat([corners, ends], 1), torch.tensor(odd, dtype=dtype)]


@pytest.mark.parametrize("levels", [STRIDES, {"p4": 16}], ids=["pyramid", "one map"])
@pytest.mark.parametrize("size", [7, 14])
def test_features_and_gradients_match_torchvision(levels, size):
    features, rois = pyramid(levels), boxes()
    results = []
    for pool in (PyramidRoIAlign(levels, size), MultiScaleRoIAlign(list(levels), size, 2)):
        pooled = pool(features, rois, SIZES)
        (pooled * torch.arange(pooled[0].numel()).view_as(pooled[0])).sum().backward()
        results.append([pooled.detach(), *(f.grad for f in features.values())])
        for feature in features.values():
            feature.grad = None
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (0, 0)])
def test_images_without_proposals_match_torchvision(counts):
    features = pyramid(STRIDES, torch.float32)
    rois = [boxes(torch.float32)[0][:count] for count in counts]
    results = []
    for pool in (PyramidRoIAlign(STRIDES, 7), MultiScaleRoIAlign(list(STRIDES), 7, 2)):
        pooled = pool(features, rois, SIZES)
        results.append((pooled, *torch.autograd.grad(pooled.sum(), list(features.values()))))
    torch.testing.assert_close(*results)


def test_half_precision_accumulates_in_float32():
    features = {name: f.detach().bfloat16() for name, f in pyramid(STRIDES).items()}
    exact = {name: f.float() for name, f in features.items()}
    rois = boxes(torch.float32)
    got = PyramidRoIAlign(STRIDES, 7)(features, rois, SIZES)
    expected = MultiScaleRoIAlign(list(STRIDES), 7, 2)(exact, rois, SIZES)
    torch.testing.assert_close(got, expected.bfloat16(), rtol=0.01, atol=1e-5)  # to the last bit of bfloat16


def test_a_small_image_in_a_padded_batch_is_pooled_at_the_nominal_strides():
    features, rois = pyramid(STRIDES), boxes()
    pool = PyramidRoIAlign(STRIDES, 7)
    alone = pool({name: f[:1] for name, f in features.items()}, rois[:1], [(50, 40)])  # padded to 96 x 128
    torch.testing.assert_close(alone, pool(features, rois, SIZES)[: len(rois[0])])
