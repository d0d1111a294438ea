"""RoIAlign (arXiv 1703.06870 §3) as the linear map it is: each bin of an RoI is a weighted sum of feature vectors.

On the CPU that is one `F.embedding_bag` over all levels, whose forward and backward pass go through whole feature
vectors; torchvision's own kernel goes through single numbers, and its backward pass uses one core.
"""

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper


class PyramidRoIAlign(MultiScaleRoIAlign):
    """torchvision's RoIAlign over the levels of a pyramid; on devices other than the CPU, with its own kernels.

    Args:
        strides: of the levels by name; torchvision's guesses them from its first batch, which goes wrong if the images
            are padded to more than 1.4 times their size.
        output_size: side of a pooled RoI.

    Args of `forward`: features (N, C, H / stride, W / stride) by name, boxes (M_n, 4) absolute xyxy of each image, and
    the images' sizes. Gives (M, C, output_size, output_size) for all M RoIs.
    """

    def __init__(self, strides: dict[str, int], output_size: int) -> None:
        super().__init__(list(strides), output_size, sampling_ratio=2)
        self.scales = [1 / stride for stride in strides.values()]
        lowest, highest = (round(math.log2(stride)) for stride in (min(strides.values()), max(strides.values())))
        self.map_levels = LevelMapper(lowest, highest, self.canonical_scale, self.canonical_level)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        levels, counts = [x[name] for name in self.featmap_names], torch.tensor([len(b) for b in boxes])
        if levels[0].device.type != "cpu" or torchvision._is_tracing() or not counts.any():
            return super().forward(x, boxes, image_shapes)
        level_of, image_of = self.map_levels(boxes), torch.repeat_interleave(counts)
        return roi_align(
            levels, self.scales, torch.cat(boxes), image_of, level_of, self.output_size, self.sampling_ratio
        )


def roi_align(
    levels: list[Tensor],
    scales: list[float],
    boxes: Tensor,
    image_of: Tensor,
    level_of: Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """`torchvision.ops.roi_align` (not `aligned`) of boxes (M, 4), box m from level `level_of[m]` of image
    `image_of[m]`, with `sampling_ratio`² points per bin. Gives (M, C, *output_size), summed in at least float32.
    """
    dtype = torch.promote_types(levels[0].dtype, torch.float32)
    channels = levels[0].shape[1]
    # All levels' positions in one table of feature vectors, and where each level begins in it.
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels]).to(dtype)
    begins = torch.tensor([0, *(level.numel() // channels for level in levels[:-1])]).cumsum(0)
    height, width = torch.tensor([level.shape[2:] for level in levels])[level_of].T
    boxes = boxes.detach().to(dtype) * torch.tensor(scales, dtype=dtype)[level_of, None]
    rows, row_weights = _samples(boxes[:, 1], boxes[:, 3], height, output_size[0], sampling_ratio)
    columns, column_weights = _samples(boxes[:, 0], boxes[:, 2], width, output_size[1], sampling_ratio)
    first = begins[level_of] + image_of * height * width
    rows = first[:, None, None] + rows * width[:, None, None]
    # For M RoIs, bins (i, j) and points (k, l); in 32 bits because they are kept for the backward pass.
    places = (rows[:, :, None, :, None] + columns[:, None, :, None, :]).int()
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    pooled = F.embedding_bag(
        places.flatten(3).flatten(0, 2), table, mode="sum", per_sample_weights=weights.flatten(3).flatten(0, 2)
    )
    return pooled.to(levels[0].dtype).view(len(boxes), *output_size, channels).permute(0, 3, 1, 2)


def _samples(start: Tensor, end: Tensor, size: Tensor, bins: int, points: int) -> tuple[Tensor, Tensor]:
    """Along one axis of M RoIs: the two positions beside each sampling point, and their bilinear weights / points.

    Both (M, bins, 2 * points). Points up to one position outside the map count as at its border, further ones as 0.
    """
    length = (end - start).clamp(min=1)
    at = start[:, None] + length[:, None] * (torch.arange(bins * points) + 0.5) / (bins * points)
    size = size[:, None]
    inside = (at >= -1) & (at <= size)
    at = at.clamp(torch.zeros_like(size), size - 1)
    low = at.long().clamp(min=0)
    upper = at - low
    positions = torch.stack([low, (low + 1).minimum(size - 1)], 2)
    weights = torch.stack([1 - upper, upper], 2) * (inside / points)[..., None]
    return positions.view(-1, bins, 2 * points), weights.view(-1, bins, 2 * points)
