"""The torch dataset of labeled images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import distributed
from ..errors import UserError
from .imagenet import FileImages
from .images import decode_image
from .loader import build_test_loader, build_train_loader
from .reading import with_retries
from .shards import ShardImages
from .unreadable import Unreadable

__all__ = ["ClassificationDataset", "build_test_loader", "build_train_loader"]


class ClassificationDataset(Dataset):
    """Item `index`, or `(index, seed)` to seed its random augmentation, is `transform(image)`, its label and its path.

    An image that cannot be read gives `Unreadable`, so that one bad file does not end a run.

    Args:
        transform: takes an image (C, H, W), uint8, and returns a tensor or in evaluation a list of views.
        channels: C; 3 is RGB, and `decode_image` says what other numbers are.
    """

    def __init__(
        self, images: FileImages | ShardImages, transform: Callable[[Tensor], Tensor | list], channels: int = 3
    ) -> None:
        self.images, self.transform, self.channels = images, transform, channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor | list, int, str] | Unreadable:
        index, seed = item if isinstance(item, tuple) else (item, None)
        try:
            content, label, path = with_retries(partial(self.images.read, index))
        except OSError as error:  # missing, or no permission
            return Unreadable(f"Image {error.filename} cannot be read: {error.strerror}.")
        try:
            image = torch.from_numpy(decode_image(content, path, channels=self.channels)).permute(2, 0, 1)
        except UserError as error:
            return Unreadable(str(error))
        with distributed.seeded(seed):
            return self.transform(image), label, path

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices of one epoch in random order."""
        return self.images.order(generator)

    def path(self, index: int) -> str:
        """Where an item's image is."""
        return self.images.path(index)

    @staticmethod
    def collate(samples: list) -> tuple[Tensor | list, dict]:
        """Images (N, C, H, W), or a list of their views, and a dict of `labels` (N,) and `file_name` of each."""
        images, labels, paths = zip(*samples, strict=True)
        batch = torch.stack(images) if isinstance(images[0], Tensor) else list(images)
        return batch, {"labels": torch.tensor(labels), "file_name": list(paths)}
