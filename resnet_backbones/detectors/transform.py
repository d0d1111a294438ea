"""The way of an image into torchvision's detectors: scaled to [0, 1], normalised, resized, on the model's device."""

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's resizing and normalisation, for uint8 images too and never below one pixel."""

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image if image.is_floating_point() else image / 255)

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        height, width = image.shape[-2:]
        min_size = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        scale = min(min_size / min(height, width), self.max_size / max(height, width))
        size = (max(1, int(height * scale)), max(1, int(width * scale)))
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], (height, width), size)
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None], size=size, mode="nearest")[:, 0]
        return image, target
