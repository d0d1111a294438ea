"""Augmentation for detection: of images and their targets, in the loader workers. All random draws are torch's.

An image is (C, H, W), uint8; its target is that of `DetectionDataset`. Objects of which cropping, shrinking or pasting
leaves nothing are dropped, so an image can lose all of them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

Transform = Callable[[Tensor, dict], tuple[Tensor, dict]]


def train_transform(
    flip: float = 0.5, photometric: bool = False, scale_jitter: Sequence[float] | None = None
) -> Transform:
    """The transform that augments an image and its target.

    Args:
        flip: probability of a horizontal flip.
        photometric: SSD's distortion of brightness, contrast, saturation, hue and the order of the channels, which are
            RGB (arXiv 1512.02325 §2.2).
        scale_jitter: the lowest and the highest factor of `jitter_scale`.
    """
    return v2.Compose(
        [
            as_tv_tensors,
            *([v2.RandomPhotometricDistort()] if photometric else []),
            *([partial(jitter_scale, low=scale_jitter[0], high=scale_jitter[1])] if scale_jitter else []),
            v2.RandomHorizontalFlip(flip),
            v2.ToPureTensor(),
            *([drop_invisible] if scale_jitter else []),
        ]
    )


def as_tv_tensors(image: Tensor, target: dict) -> tuple[tv_tensors.Image, dict]:
    """The same as `tv_tensors`, by which torchvision's transforms tell images, boxes and masks apart."""
    typed = {"boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[-2:])}
    if "masks" in target:
        typed["masks"] = tv_tensors.Mask(target["masks"])
    return tv_tensors.Image(image), target | typed


def jitter_scale(image: tv_tensors.Image, target: dict, low: float, high: float) -> tuple[tv_tensors.Image, dict]:
    """Large-scale jitter (arXiv 2012.07177): objects change in scale by a factor drawn from [low, high].

    Above 1, a window of 1 / factor of the height and width is cut out, which the detector resizes as it would the whole
    image. Below 1, the image is shrunk and padded to the size it had.
    """
    factor = torch.empty(1).uniform_(low, high).item()
    height, width = image.shape[-2:]
    if factor > 1:
        return v2.RandomCrop([max(1, round(height / factor)), max(1, round(width / factor))])(image, target)
    return resize_and_pad(image, target, factor, (height, width))


def resize_and_pad(
    image: tv_tensors.Image, target: dict, factor: float, size: tuple[int, int]
) -> tuple[tv_tensors.Image, dict]:
    """Scaled by `factor`, in the top left corner of an image of `size` (height, width), padded with its mean color."""
    # At least 2 pixels: torch cannot resize an image of three channels to a single one.
    height, width = (min(max(2, round(side * factor)), most) for side, most in zip(image.shape[-2:], size, strict=True))
    mean = image.float().mean((1, 2)).round().tolist()
    padding = [0, 0, size[1] - width, size[0] - height]  # left, top, right, bottom
    pad = v2.Pad(padding, fill={tv_tensors.Image: mean, "others": 0})
    return pad(*v2.Resize([height, width])(image, target))


def paste_objects(image: Tensor, target: dict, source: Tensor, objects: dict) -> tuple[Tensor, dict]:
    """Simple copy-paste (arXiv 2012.07177): the image with each object of `source` pasted with probability 1/2.

    Both targets have masks. `source` may have another size; it is resized to fit into the image. Pasted objects cover
    the masks below them; partly covered boxes are fitted to what is still visible.
    """
    height, width = image.shape[-2:]
    factor = min(height / source.shape[-2], width / source.shape[-1])
    source, objects = resize_and_pad(*as_tv_tensors(source, objects), factor, (height, width))
    source, objects = drop_invisible(*v2.ToPureTensor()(source, objects))
    pasted = select(objects, torch.rand(len(objects["labels"])) < 0.5)

    covers = pasted["masks"].any(0).bool()
    touched = has_pixels(target["masks"] * covers)
    masks = target["masks"] * ~covers
    seen = has_pixels(masks)
    below, touched = select(target | {"masks": masks}, seen), touched[seen]
    fitted = masks_to_boxes(below["masks"]) + torch.tensor([0, 0, 1, 1])  # to the far edges of the last pixels
    below["boxes"] = torch.where(touched[:, None], fitted, below["boxes"])
    joined = {key: torch.cat([below[key], pasted[key]]) for key in ("boxes", "labels", "masks")}
    return torch.where(covers, source, image), target | joined


def drop_invisible(image: Tensor, target: dict) -> tuple[Tensor, dict]:
    """Drop the objects whose box is less than a pixel wide or high, or whose mask is empty."""
    seen = (target["boxes"][:, 2:] - target["boxes"][:, :2] >= 1).all(1)
    if "masks" in target:
        seen &= has_pixels(target["masks"])
    return image, select(target, seen)


def has_pixels(masks: Tensor) -> Tensor:
    """(M,), bool: the masks (M, H, W), uint8, that are not empty."""
    return masks.flatten(1).any(1).bool()


def select(target: dict, keep: Tensor) -> dict:
    """The target with the objects where `keep` (M,) is true."""
    return target | {key: target[key][keep] for key in ("boxes", "labels", "masks") if key in target}
