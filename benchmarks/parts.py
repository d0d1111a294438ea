"""The parts by name; each returns rows, which it measures when called."""

import torch

from resnet_backbones.errors import UserError

from .ablation import ablations
from .deployment import deployments
from .detector import detectors, memory_of_training
from .loading import loaders
from .networks import backbones, fpns
from .profile import profiles
from .scoring import evaluators
from .settings import PARTS, Settings
from .timing import Row

MEASURES = dict(
    zip(
        PARTS,
        (backbones, fpns, detectors, memory_of_training, loaders, evaluators, profiles, ablations, deployments),
        strict=True,
    )
)


def prepare(settings: Settings) -> None:
    """Set torch's threads. Raises `UserError` if the device is not available."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but there is no GPU; leave it out.")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def measure_part(part: str, settings: Settings) -> list[Row]:
    return MEASURES[part](settings)
