"""SyncBN: batch normalisation whose mean and variance are those of the whole batch over all ranks."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from .. import distributed


class SyncBatchNorm(nn.BatchNorm2d):
    """On GPUs `nn.SyncBatchNorm`, which works nowhere else; on the CPU the same in plain operations.

    In one process, and in evaluation, it is `nn.BatchNorm2d`.
    """

    process_group = None  # all ranks; this and the check are what `nn.SyncBatchNorm.forward` asks for
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        if x.is_cuda:
            return nn.SyncBatchNorm.forward(self, x)
        axes = (0, 2, 3)
        count = distributed.total(torch.tensor(float(x.numel() / x.shape[1])))
        mean = all_reduce(x.sum(axes)) / count
        centred = x - mean[:, None, None]
        var = all_reduce(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def sync_batch_norms(net: nn.Module) -> nn.Module:
    """Make every BatchNorm2d of `net` a SyncBatchNorm, which has the same parameters and statistics."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm
    return net
