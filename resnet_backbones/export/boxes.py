"""What every exported detector computes on images, boxes and scores, in operators that torch.export can trace.

Sizes are Python integers in eager mode and symbols under export; the number of boxes depends on the data.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import nms

from ..detectors.transform import ImageTransform

Size = tuple[int, int]  # height and width


def prepare(image: Tensor, transform: ImageTransform) -> tuple[Tensor, Size]:
    """An image (1, C, H, W), normalized, resized and padded below and to the right, and its size without padding."""
    size = transform.resized(*image.shape[-2:])
    image = F.interpolate(transform.normalize(image), size=size, mode="bilinear", align_corners=False)
    unit = transform.size_divisible
    height, width = (free((side + unit - 1) // unit) * unit for side in size)
    return F.pad(image, (0, width - size[1], 0, height - size[0])), size


def free(size: int) -> int:
    """The same size as a number about which torch.export assumes only that it is positive.

    From the sizes of its example it would assume that no feature map has a single row or column, as in small images.
    """
    number = torch.scalar_tensor(size, dtype=torch.int64).item()
    torch._check(number >= 1)
    return number


def anchors_of(generator: AnchorGenerator, image: Tensor, features: list[Tensor]) -> list[Tensor]:
    """The anchors (H_l · W_l · A, 4) of each level of the padded `image`."""
    grids = [feature.shape[-2:] for feature in features]
    strides = [[image.shape[-2] // height, image.shape[-1] // width] for height, width in grids]
    return generator.grid_anchors(grids, strides)


def best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest of `scores` (N,), at most `most` of them in descending order, and their indices."""
    return scores.topk(torch.sym_min(most, scores.shape[0]))


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (N, 4), xyxy, within an image of this size."""
    height, width = size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x, y], 2).flatten(1)


def at_least(boxes: Tensor, side: float) -> Tensor:
    """The mask (N,) of the boxes whose sides are both `side` or longer."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= side).all(1)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """The indices of the boxes (N, 4) ≥ 0 with scores (N,) ≥ 0 that NMS keeps, by descending score.

    torchvision tells torch.export that its NMS keeps at least two boxes. So two more are added, far from all others
    and with the lowest scores, which are always kept, and last.
    """
    others = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    return nms(torch.cat([boxes, others]), torch.cat([scores, scores.new_tensor([-1, -2])]), iou)[:-2]


def nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """NMS among boxes (N, 4) ≥ 0 of the same label: what is left, at most `most`, by descending score.

    Each class is moved to a region of its own, beside all others.
    """
    beyond = F.pad(boxes.flatten(), (0, 1)).max() + 1  # padded, because there may be no boxes
    kept = non_maximum_suppression(boxes + (labels * beyond)[:, None], scores, iou)[:most]
    return boxes[kept], scores[kept], labels[kept]


def to_native(boxes: Tensor, size: Size, native: Size) -> Tensor:
    """Boxes (N, 4) of an image resized to `size` in the pixels of the `native` one."""
    y, x = (torch.scalar_tensor(n) / torch.scalar_tensor(s) for n, s in zip(native, size, strict=True))
    return boxes * torch.stack([x, y, x, y])
