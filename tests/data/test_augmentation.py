"""Batch augmentation for classification."""

import torch

from resnet_backbones.config import PretrainConfig, load_config
from resnet_backbones.data.augmentation import BatchAugmentation, color_shifts


def test_color_shifts_have_the_covariance_of_imagenets_colors():
    # As published for AlexNet's shifts, N(0, 0.1) times the eigenvalue along each eigenvector, a column.
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = vectors @ torch.diag((0.1 * values).square()) @ vectors.T
    torch.testing.assert_close(torch.cov(color_shifts(200_000, 0.1).T), expected, rtol=0.02, atol=0)


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
