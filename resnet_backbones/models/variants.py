"""Switches that any built ResNet takes, one function each."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from ..errors import UserError, unknown
from .backbone import ShapeSpec
from .deform import DeformConv2d
from .preact import PreActResNet
from .resnet import LAYERS, ResNet
from .shortcuts import ZeroPad


def dilate(net: ResNet, output_stride: int, dilate_first: bool = False) -> None:
    """Replace the strides past `output_stride` (8, 16 or 32) by dilation of the 3x3 convolutions after them.

    Every removed stride of 2 doubles the dilation of all that follows, so that every second position of the result
    is what the strided net gives (the hole algorithm, arXiv 1606.00915 §3.1). This is torchvision's
    `replace_stride_with_dilation`, timm's `output_stride` and, with `stride_in_1x1`, detectron2's DC5. With
    `dilate_first` the 3x3 whose stride is removed is dilated as well, as in detectron2's DC5 without `stride_in_1x1`.
    """
    if output_stride not in (8, 16, 32) or net.shapes["stem"].stride != 4:
        raise UserError(f"output_stride is {output_stride}; it must be 8, 16 or 32, of a net whose stem has stride 4.")
    dilation = 1
    for feature in list(net.stages)[1:]:
        before = dilation
        for block in _blocks(net, [feature]):
            if net.shapes[feature].stride <= output_stride:
                break
            if block.downsample is not None:
                _dilate_shortcut(block.downsample, before)
            strided = [conv for conv in _convs(block) if conv.stride[0] == 2]
            if dilate_first and strided:
                dilation *= 2
                for conv in strided:
                    conv.stride = (1, 1)
            dilation = _dilate_convs(_convs(block), dilation)
            before = dilation
        channels, stride = net.shapes[feature]
        net.shapes[feature] = ShapeSpec(channels, min(stride, output_stride))


def deform(net: ResNet, stages: Sequence[str], modulated: bool) -> None:
    """Make the 3x3 of every bottleneck (the second 3x3 of every basic block) in `stages` deformable."""
    for block in _blocks(net, stages, "deform_on"):
        block.conv2 = DeformConv2d(block.conv2, modulated)


def stochastic_depth(net: ResNet, probability: float) -> None:
    """In training drop the residual of block l of L, per image, with probability l / L (arXiv 1603.09382 eq. 4)."""
    if not 0 <= probability < 1:
        raise UserError(f"drop_path is {probability}; it must be at least 0 and less than 1.")
    blocks = list(_blocks(net, list(net.stages)[1:]))
    for k, block in enumerate(blocks, 1):
        block.drop_path = StochasticDepth(probability * k / len(blocks), mode="row")


def zero_init_residual(net: ResNet) -> None:
    """Start the last norm of each block at weight 0, so that the block is its shortcut (arXiv 1706.02677 §5.1)."""
    if isinstance(net, PreActResNet):
        raise UserError("zero_init_residual needs a norm at the end of each block, which pre-activation does not have.")
    for block in _blocks(net, list(net.stages)[1:]):
        last = block.bn3 if hasattr(block, "bn3") else block.bn2
        if getattr(last, "weight", None) is None:
            raise UserError("zero_init_residual needs a norm at the end of each block; norm is none.")
        nn.init.zeros_(last.weight)


def checkpoint_stages(net: ResNet, stages: Sequence[str]) -> None:
    """Recompute the activations of `stages` in the backward pass instead of keeping them (arXiv 1604.06174)."""
    list(_blocks(net, stages, "checkpoint_stages"))
    for feature in stages:
        stage = net.get_submodule(LAYERS[feature])
        net.set_submodule(LAYERS[feature], CheckpointedStage(OrderedDict(stage.named_children())))


class CheckpointedStage(nn.Sequential):
    """A stage that keeps only its input; its parameters keep their names."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False, context_fn=self.contexts)

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """The contexts of the forward pass and of its repetition in the backward pass."""
        return nullcontext(), _statistics_kept(self)


@contextmanager
def _statistics_kept(stage: nn.Module) -> Iterator[None]:
    """BN's statistics and step counter stay as they are: the second forward pass would count the batch twice."""
    norms = [m for m in stage.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm)) and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, steps) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(steps)


def _blocks(net: ResNet, stages: Sequence[str], option: str = "stages") -> Iterable[nn.Module]:
    for feature in stages:
        if feature not in LAYERS or feature not in net.stages:
            raise UserError(f"{option}: " + unknown("stage", feature, list(net.stages)[1:]))
        yield from (m for m in getattr(net, LAYERS[feature]) if hasattr(m, "conv1"))


def _convs(block: nn.Module) -> list[nn.Conv2d]:
    return [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]


def _dilate_convs(convs: Iterable[nn.Conv2d], dilation: int) -> int:
    for conv in convs:
        if conv.kernel_size[0] > 1:
            conv.dilation = (dilation, dilation)
            conv.padding = tuple(dilation * (side // 2) for side in conv.kernel_size)
        if conv.stride[0] == 2:
            conv.stride = (1, 1)
            dilation *= 2
    return dilation


def _dilate_shortcut(shortcut: nn.Module, dilation: int) -> None:
    if isinstance(shortcut, ZeroPad):
        shortcut.stride = 1
    elif isinstance(shortcut, nn.Sequential):
        if isinstance(shortcut[0], nn.AvgPool2d):  # stride 1 at the same size, as in timm
            shortcut[0] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))
        _dilate_convs((m for m in shortcut if isinstance(m, nn.Conv2d)), dilation)
