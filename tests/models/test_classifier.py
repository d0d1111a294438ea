"""The classification loss that torch does not have."""

import torch
import torch.nn.functional as F

from resnet_backbones.models.classifier import soft_binary_cross_entropy


def test_binary_cross_entropy_treats_every_mixed_class_as_positive():
    logits = torch.randn(4, 3)
    shares = torch.tensor([[0.3, 0.7, 0], [1, 0, 0], [0, 0, 1], [0, 0.5, 0.5]])
    reference = F.binary_cross_entropy_with_logits(logits, (shares > 0).float())
    torch.testing.assert_close(soft_binary_cross_entropy(logits, shares), reference)
    labels = torch.tensor([1, 0, 2, 2])
    smooth = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(
        soft_binary_cross_entropy(logits, labels, 0.1), F.binary_cross_entropy_with_logits(logits, smooth)
    )
