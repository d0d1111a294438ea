"""Augmentation for classification: of single images in the loader workers, and of batches on the model's device."""

from collections.abc import Callable, Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms import v2

from ..preprocessing import Preprocessing

# Eigenvalues (as standard deviations, in [0, 1]) and eigenvectors (columns) of ImageNet's RGB values, AlexNet §4.1.
RGB_EIGENVALUES = (0.2175, 0.0188, 0.0045)
RGB_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def train_transform(augmentation: DictConfig, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """The transform from an image (C, H, W) to a crop (C, size, size), both uint8, by the config's `augmentation`."""
    size, interpolation = augmentation.size, v2.InterpolationMode(preprocessing.interpolation)
    gray = [round(255 * v) for v in preprocessing.as_rgb()[0]]  # zero after normalization
    crops = {
        "shorter_side": [
            v2.RandomShortestSize(
                list(range(augmentation.shorter_side[0], augmentation.shorter_side[1] + 1)), interpolation=interpolation
            ),
            v2.RandomCrop(size),
        ],
        "random_resized": [v2.RandomResizedCrop(size, tuple(augmentation.scale), interpolation=interpolation)],
        "padded": [
            v2.Resize(size, interpolation),
            v2.RandomCrop(size, padding=augmentation.padding, fill=tuple(gray)),
        ],
    }
    policies = {
        "none": [],
        # Rotations and shears of tensors have no bicubic interpolation.
        "trivial": [v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)],
        "rand": [v2.RandAugment(2, augmentation.rand_magnitude, interpolation=v2.InterpolationMode.BILINEAR)],
    }
    erasing = augmentation.random_erasing
    return v2.Compose(
        [
            *crops[augmentation.crop],
            v2.RandomHorizontalFlip(augmentation.flip),
            *policies[augmentation.auto_augment],
            *([v2.RandomErasing(erasing, value=gray)] if erasing else []),
        ]
    )


class BatchAugmentation:
    """Color shifts and mixing of normalized images (N, C, H, W) and their labels (N,), on their device.

    Args:
        augmentation: the section of a config.
        image_std: what the images were divided by, per channel, for images in [0, 1].
    """

    def __init__(self, augmentation: DictConfig, num_classes: int, image_std: Sequence[float]) -> None:
        self.lighting, self.image_std = augmentation.lighting, torch.tensor(image_std)
        mixers = [
            mixer(alpha=alpha, num_classes=num_classes)
            for mixer, alpha in ((v2.MixUp, augmentation.mixup), (v2.CutMix, augmentation.cutmix))
            if alpha > 0
        ]
        self.mix = v2.RandomChoice(mixers) if mixers else None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Labels of mixed images become soft, (N, num_classes)."""
        if self.lighting > 0:
            shifts = color_shifts(len(images), self.lighting) / self.image_std
            images = images + shifts.to(images)[:, :, None, None]
        return self.mix(images, labels) if self.mix is not None else (images, labels)


def color_shifts(count: int, std: float) -> Tensor:
    """(count, 3), for RGB in [0, 1]: N(0, std · eigenvalue) along each of its principal components (AlexNet §4.1)."""
    amounts = torch.randn(count, 3) * std * torch.tensor(RGB_EIGENVALUES)
    return amounts @ torch.tensor(RGB_EIGENVECTORS).T
