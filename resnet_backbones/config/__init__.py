"""Configs: YAML files checked against dataclasses, which are their schema, defaults and documentation."""

from .detection import Config
from .loading import CONFIG_FOLDER, find_config, image_channels, load_config, save_config
from .pretraining import PretrainConfig
from .shared import SolverConfig

__all__ = [
    "CONFIG_FOLDER",
    "Config",
    "PretrainConfig",
    "SolverConfig",
    "find_config",
    "image_channels",
    "load_config",
    "save_config",
]
