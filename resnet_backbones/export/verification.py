"""Exported networks beside the eager ones that they were made from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network

BOX, SCORE, PIXELS = 1e-2, 1e-4, 0.999  # the largest differences, pixels and scores, and the share of equal pixels
FEATURE = 1e-4  # of a feature's or logit's largest value
SIZES = ((480, 640), (333, 500), (640, 427), (256, 256), (120, 400), (31, 47))  # height and width


@dataclass
class Difference:
    """The largest differences between two networks over some inputs; `wrong` names what is above the tolerance."""

    inputs: int = 0
    found: int = 0  # detections
    box: float = 0.0  # pixels
    score: float = 0.0
    pixels: float | None = None  # the smallest share of equal pixels of the masks of an image; None without masks
    feature: float | None = None  # of the largest value of a feature; None for detections
    wrong: str = ""

    def __str__(self) -> str:
        if self.feature is not None:
            return f"{self.inputs} inputs: outputs within {self.feature:.1g} of the largest value"
        masks = "" if self.pixels is None else f", masks equal in {100 * self.pixels:.4g} % of pixels"
        apart = f"boxes within {self.box:.1g} px, scores within {self.score:.1g}{masks}"
        return f"{self.inputs} images, {self.found} detections: {apart}"


def drawn_inputs(network: Network) -> list[Tensor]:
    """Smooth colored pictures of several sizes, and a blank one; in batches of 1 and 3 if the network takes them."""
    draws = torch.Generator().manual_seed(0)
    channels, images = network.example.shape[1], []
    for k, (height, width) in enumerate(SIZES):
        count = 3 if k % 2 and 0 in network.dynamic else 1
        coarse = torch.rand(count, channels, height // 16 + 2, width // 16 + 2, generator=draws)
        images.append(F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1))
    images.append(torch.full((1, channels, *SIZES[0]), 0.5))
    return [like(image, network.example) for image in images]


def like(image: Tensor, example: Tensor) -> Tensor:
    """An image in [0, 1] in the form of an input."""
    return (image * 255).round().to(torch.uint8) if example.dtype == torch.uint8 else image


def compare(network: Network, run: Callable[[Tensor], dict[str, Tensor]], inputs: Iterable[Tensor]) -> Difference:
    """How far `run`, the exported network, differs from the eager one."""
    total = Difference()
    for image in inputs:
        with torch.inference_mode():
            expected = network.eager(image)
        actual = run(image)
        total.inputs += 1
        if network.kind == "detection":
            compare_detections(expected, actual, score_floor(network.limits, expected["scores"]), total)
        else:
            compare_features(expected, actual, total)
        if total.wrong:
            total.wrong = f"input {total.inputs}, {tuple(image.shape)}: {total.wrong}"
            break
    return total


def compare_features(expected: dict[str, Tensor], actual: dict[str, Tensor], total: Difference) -> None:
    for name, feature in expected.items():
        if feature.shape != actual[name].shape:
            total.wrong = f"{name} is of shape {tuple(actual[name].shape)}, not {tuple(feature.shape)}"
            return
        apart = ((feature - actual[name]).abs().max() / feature.abs().max().clamp(min=1e-12)).item()
        total.feature = max(total.feature or 0.0, apart)
        if not apart <= FEATURE:
            total.wrong = f"{name} differs by {apart:.1g} of its largest value"


def compare_detections(expected: dict[str, Tensor], actual: dict[str, Tensor], floor: float, total: Difference) -> None:
    """Each detection above the score `floor` must have a partner with its label in the other; ties may be reordered."""
    total.found += len(expected["boxes"])
    for one, other, fault in ((expected, actual, "is missing"), (actual, expected, "is not the model's")):
        sure = one["scores"] > floor
        scores = (one["scores"][:, None] - other["scores"]).abs()
        apart = (one["boxes"][:, None] - other["boxes"]).abs().amax(2)
        apart = apart.masked_fill(one["labels"][:, None] != other["labels"], torch.inf)
        alone = sure & apart.isinf().all(1)
        if alone.any():
            first = alone.nonzero()[0, 0]
            total.wrong = f"a detection of label {one['labels'][first]}, score {one['scores'][first]:.4f}, {fault}"
            return
        rows = sure.nonzero()[:, 0]
        if not len(rows):
            continue
        partners = (apart + scores).argmin(1)[rows]
        total.box = max(total.box, apart[rows, partners].max().item())
        total.score = max(total.score, scores[rows, partners].max().item())
        if "masks" in one:
            same = (one["masks"][rows] >= 0.5) == (other["masks"][partners] >= 0.5)
            total.pixels = min(1.0 if total.pixels is None else total.pixels, same.float().mean().item())
    if total.box > BOX or total.score > SCORE:
        total.wrong = f"boxes differ by {total.box:.1g} px, scores by {total.score:.1g}"
    elif total.pixels is not None and total.pixels < PIXELS:
        total.wrong = f"masks differ in {100 - 100 * total.pixels:.2g} % of pixels"


def score_floor(limits: nn.Module, scores: Tensor) -> float:
    """The score up to which rounding decides what an image's detections are: the threshold, or their lowest score."""
    full = len(scores) == limits.detections_per_img
    return max(limits.score_thresh, scores.min().item() if full else 0.0) + SCORE
