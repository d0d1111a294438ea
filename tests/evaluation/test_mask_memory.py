"""Masks equal those of torchvision, and those of a large image take the memory of one copy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from resnet_backbones.detectors.transform import ImageTransform
from resnet_backbones.evaluation.detection import encode_masks
from resnet_backbones.preprocessing import imagenet


def detections(count: int) -> dict[str, torch.Tensor]:
    corner = torch.rand(count, 2) * 40
    boxes = torch.cat([corner, corner + 20 * torch.rand(count, 2)], 1)
    return {"boxes": boxes, "scores": torch.rand(count), "masks": torch.rand(count, 1, 28, 28)}


def test_masks_and_boxes_equal_those_of_torchvision():
    transform = ImageTransform([60], 100, imagenet("RGB")).eval()
    results = [detections(7), detections(0)]
    sizes = [(60, 80), (64, 90)], [(120, 160), (100, 141)]
    expected = GeneralizedRCNNTransform.postprocess(transform, [dict(r) for r in results], *sizes)
    for ours, theirs in zip(transform.postprocess(results, *sizes), expected, strict=True):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_masks_are_thresholded_at_one_half():
    probabilities = torch.rand(3, 1, 9, 7)
    probabilities[0, 0, 0, 0] = 0.5
    decoded = np.stack([rle.decode(e) for e in encode_masks(probabilities)])
    assert (decoded == (probabilities[:, 0] >= 0.5).numpy()).all()


MEASURE = """
import re, torch
from pathlib import Path
from resnet_backbones.detectors.transform import ImageTransform
from resnet_backbones.evaluation.detection import encode_masks
from resnet_backbones.preprocessing import imagenet
def peak():  # KiB of this process; getrusage may give that of its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
transform = ImageTransform([800], 1333, imagenet("RGB")).eval()
boxes, size = torch.tensor([[10.0, 10.0, 90.0, 80.0]]).repeat(100, 1), (700, 1000)
before = peak()
found = {"boxes": boxes, "masks": torch.rand(100, 1, 28, 28)}
encode_masks(transform.postprocess([found], [size], [size])[0]["masks"])
print((peak() - before) / (100 * 700 * 1000 * 4 / 1024))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_pasting_and_encoding_take_little_more_memory_than_the_masks():
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert 0.5 < float(result.stdout) < 1.3
