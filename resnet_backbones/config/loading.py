"""YAML files and `key=value` overrides, checked against the schema."""

import difflib
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from ..errors import UserError, reason
from .as_written import parse_yaml
from .detection import Config, DatasetConfig
from .pretraining import PretrainConfig
from .rules import check_values

PACKAGE = Path(__file__).parents[1]
# A wheel ships them as `resnet_backbones.configs`; in a checkout they are beside the package.
CONFIG_FOLDER = next((f for f in (PACKAGE / "configs", PACKAGE.parent / "configs") if f.is_dir()), PACKAGE / "configs")

# What OmegaConf and PyYAML raise for text that is not YAML or whose numbers, dates or keys Python cannot represent.
NOT_YAML = (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError)
COMMANDS = {Config: "train", PretrainConfig: "pretrain"}


def load_config(name: str, overrides: list[str] | None = None, schema: type = Config) -> DictConfig:
    """The config of a YAML file with `key=value` overrides.

    Args:
        name: a path or the name of a shipped config, see `find_config`.
        overrides: as in `["solver.lr=0.01", "data.test=[coco_2017_val]"]`.
        schema: `Config` of a detector or `PretrainConfig` of a classifier.

    Raises `UserError` naming the file, the key and the closest match.
    """
    path = find_config(name)
    try:
        given = OmegaConf.create(parse_yaml(path.read_bytes()) or {})
    except NOT_YAML as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, DictConfig):
        raise UserError(f"{path} must hold a mapping of keys to values, like quickstart_mask_rcnn.yaml.")
    _check_command(given, schema, path)
    config = _merge(OmegaConf.structured(schema), given, str(path))
    for override in overrides or []:
        config = _merge(config, _parse_override(override), f"override {override[:200]!r}")
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key} cannot be resolved: {reason(error)}") from error
    except RecursionError as error:
        raise UserError(f"{path} cannot be resolved: a ${{reference}} refers to itself.") from error
    check_values(values, str(path))
    return config


def find_config(name: str) -> Path:
    """The file that `--config NAME` means: a path, or the name of a shipped config with or without ".yaml".

    Paths are relative to the working directory, which comes first. Raises `UserError` with close matches.
    """
    for path in (Path(name), CONFIG_FOLDER / name, CONFIG_FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    valid = sorted(path.name for path in CONFIG_FOLDER.glob("*.yaml"))
    near = difflib.get_close_matches(Path(name).name, valid, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Available: {', '.join(valid)}."
    raise UserError(f"Config {name} does not exist, neither as a file nor in {CONFIG_FOLDER}. {hint}")


def image_channels(config: DictConfig) -> int:
    """The number of channels of the images that the backbone takes."""
    return config.backbone.in_channels or 3


def save_config(config: DictConfig, path: Path) -> None:
    """Write the complete config, every default included."""
    path.write_text(OmegaConf.to_yaml(config, resolve=True))


def _check_command(given: DictConfig, schema: type, path: Path) -> None:
    """Raise `UserError` if the keys of `given` do not fit `schema` but do fit that of the other command."""
    for other, command in COMMANDS.items():
        if not set(given) <= set(OmegaConf.structured(schema)) and set(given) <= set(OmegaConf.structured(other)):
            raise UserError(f"{path} is a config for `resnet-backbones {command}`, not for {COMMANDS[schema]}.")


def _parse_override(override: str) -> DictConfig:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"Override {override[:200]!r} is not of the form key=value, such as solver.lr=0.01.")
    try:
        given = OmegaConf.create()
        OmegaConf.update(given, key, parse_yaml(value))
        return given
    except NOT_YAML as error:
        raise UserError(f"Override {override[:200]!r} cannot be read: {' '.join(str(error).split())}") from error


def _merge(config: DictConfig, given: DictConfig | ListConfig, source: str) -> DictConfig:
    _check_containers(config, given, source)
    try:
        return OmegaConf.merge(config, given)
    except TypeError as error:  # as below, behind a ${reference}
        raise UserError(f"{source}: {reason(error)}: a list is given as a mapping or vice versa.") from error
    except ConfigKeyError as error:
        parent, _, key = str(error.full_key).rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        valid = list(map(str, node if isinstance(node, DictConfig) else DatasetConfig.__dataclass_fields__))
        near = difflib.get_close_matches(key, valid, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Valid keys: {', '.join(valid)}."
        raise UserError(f"{source}: unknown key {error.full_key}. {hint}") from error
    except OmegaConfBaseException as error:
        if error.full_key and "is not a ListConfig" in str(error):
            value = OmegaConf.select(given, error.full_key)
            raise UserError(f"{source}: {error.full_key} is {value}; it must be a list, such as [{value}].") from error
        raise UserError(f"{source}: {error.full_key or 'the config'} cannot be set: {reason(error)}") from error


def _check_containers(config: DictConfig, given: DictConfig, source: str, parent: str = "") -> None:
    """Raise `UserError` if only one of the two has a mapping at some key, or a list where there is a list of lists.

    OmegaConf refuses these without the key or the value.
    """
    for key in given:
        if OmegaConf.is_missing(given, key) or OmegaConf.is_interpolation(given, key):
            continue
        if key in config and not OmegaConf.is_interpolation(config, key):
            before = config[key]
        elif parent == "datasets.":
            before = OmegaConf.structured(DatasetConfig)
        else:
            continue
        value, place, wanted = given[key], f"{parent}{key}", None
        if isinstance(value, DictConfig) and isinstance(before, DictConfig):
            _check_containers(before, value, source, f"{place}.")
        elif isinstance(before, DictConfig):
            wanted = "a mapping of keys to values"
        elif isinstance(value, DictConfig):
            wanted = "a list" if isinstance(before, ListConfig) else "a value or a list"
        elif _is_nested(before) and isinstance(value, ListConfig) and len(value) > 0 and not _is_nested(value):
            wanted = "a list of lists"
        if wanted is not None:
            raise UserError(f"{source}: {place} is {value}; it must be {wanted}.")


def _is_nested(value: object) -> bool:
    return isinstance(value, ListConfig) and len(value) > 0 and all(isinstance(v, ListConfig) for v in value)
