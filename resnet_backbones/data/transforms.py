"""Augmentation of image, boxes and masks together. Resizing is the detector's, on its device."""

from torchvision.transforms import v2


def build_transforms(train: bool, flip: float) -> v2.Transform:
    """Horizontal flips with probability `flip` in training, nothing in evaluation."""
    return v2.RandomHorizontalFlip(flip) if train and flip > 0 else v2.Identity()
