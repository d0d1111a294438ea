"""Checks and set-ups that several rooms' tests share."""

from torch import nn


def randomize_statistics(model: nn.Module) -> None:
    """Statistics like a trained net's, so that a misplaced norm shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


def assert_equal_features(ours: dict, theirs: dict) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        error = (ours[name] - expected).abs().max() / expected.abs().max()
        assert error <= 5e-6, f"{name}: {error}"
