"""Random draws that belong to an image, whatever process trains on it: from the seed that its target brings."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

RESIZE, ANCHORS, ROIS = 1, 2, 3  # what is drawn for an image: each from a stream of its own


@contextmanager
def drawing_from(seed: int | None, stream: int, device: torch.device) -> Iterator[None]:
    """torch's own draws on `device` from one stream of an image, and afterwards from where they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else [], enabled=seed is not None):
        if seed is not None:
            (torch.cuda if on_gpu else torch.default_generator).manual_seed(seed + stream)
        yield
