"""Precise BN: statistics over many batches."""

import torch

from resnet_backbones.classifiers import build_classifier
from resnet_backbones.training.precise_bn import update_precise_bn


def test_precise_bn_computes_the_true_means():
    model = build_classifier("cifar_resnet20", num_classes=3)
    batches = [(torch.randn(8, 3, 32, 32) + k, torch.zeros(8, dtype=torch.long)) for k in range(3)]
    update_precise_bn(model, batches, 3)
    with torch.no_grad():
        inputs = torch.cat([model.backbone.conv1(images) for images, _ in batches])
    torch.testing.assert_close(model.backbone.bn1.running_mean, inputs.mean((0, 2, 3)))
    assert model.training
