"""Batch augmentation for classification."""

import pytest
import torch

from resnet_backbones.config import PretrainConfig, load_config
from resnet_backbones.data.augmentation import BatchAugmentation, color_shifts


def test_color_shifts_have_the_covariance_of_imagenets_colors():
    # AlexNet's eigenvectors times its eigenvalues: shifts vary together, mostly in brightness.
    shifts = color_shifts(200_000, 0.1)
    covariance = torch.cov(shifts.T)
    assert covariance[0, 0].sqrt() == pytest.approx(0.1 * 0.1243, rel=0.02)
    assert (covariance > 0).all()


def test_mixed_labels_match_the_mixed_pixels():
    config = load_config("imagenet_resnet50_v2", schema=PretrainConfig)
    augment = BatchAugmentation(config.augmentation, 5, (1.0, 1.0, 1.0))
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    for _ in range(4):
        mixed, shares = augment(images, torch.arange(4))
        assert shares.shape == (4, 5)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        # Image k is k everywhere, so the mean of a mix follows from the shares in its label.
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ torch.arange(5.0))
