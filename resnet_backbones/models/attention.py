"""Channel attention inside residual blocks."""

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """y = x * sigmoid(fc2(relu(fc1(mean(x))))), arXiv 1709.01507 equations (2) to (4), with r = 16.

    The reduced width is a multiple of 8, as in timm, whose names and weights these are: it is the paper's C / 16
    from 128 channels on, but 8 rather than 4 for the 64 channels of SE-ResNet-18's and 34's first stage.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(8, (channels // 16 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(squeezed))).sigmoid()
