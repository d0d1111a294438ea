"""YAML files and `key=value` overrides, read into the schema."""

import difflib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from ..errors import UserError, reason
from ..nesting import nested_children
from .detection import Config, DatasetConfig
from .pretraining import PretrainConfig
from .rules import check_values
from .yaml import LARGEST, check_references, check_yaml

CONFIG_FOLDER = Path(__file__).parents[2] / "configs"

# What PyYAML and OmegaConf make of text that is no YAML, or of which Python cannot make numbers, dates or keys.
NOT_YAML = (YAMLError, OSError, ValueError, TypeError, LookupError, RecursionError, OverflowError, AttributeError,
            OmegaConfBaseException)  # fmt: skip
LONGEST_KEY = 200
TOOLS = {Config: "tools/train_net.py", PretrainConfig: "tools/pretrain.py"}


def load_config(name: str, overrides: list[str] | None = None, schema: type = Config) -> DictConfig:
    """The config of a YAML file with `key=value` overrides, checked against the schema.

    Args:
        name: a path, or a name in `configs/`, with or without ".yaml".
        overrides: as in `["solver.lr=0.01", "data.test=[coco_2017_val]"]`.
        schema: `Config` of a detector or `PretrainConfig` of a classifier.

    Raises `UserError` that names the file, the key and the near match.
    """
    path = find_config(name)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        check_yaml(text)
        given = OmegaConf.load(io.StringIO(text))
    except NOT_YAML as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, DictConfig):
        raise UserError(f"{path} must hold a mapping of keys to values, like configs/quickstart_mask_rcnn.yaml.")
    for other, tool in TOOLS.items():
        if other is not schema and set(given) - set(OmegaConf.structured(schema)) and _fits(other, given):
            raise UserError(f"{path} is a config of {tool}, not of {TOOLS[schema]}.")
    config = _merge(OmegaConf.structured(schema), given, str(path))
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"Override {override!r} is not of the form key=value, such as solver.lr=0.01.")
        shown = f"{override[:200]!r}"
        try:
            if len(key) > LONGEST_KEY:
                raise ValueError("its key is too long")
            check_yaml(value)
            values = OmegaConf.from_dotlist([override])
        except NOT_YAML as error:
            raise UserError(f"Override {shown} cannot be read: {' '.join(str(error).split())}") from error
        config = _merge(config, values, f"override {shown}")
    try:
        check_references(_strings(OmegaConf.to_container(config)))
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key} cannot be resolved: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be resolved: {reason(error)}") from error
    check_values(values, str(path))
    return config


def find_config(name: str) -> Path:
    """The file that `--config NAME` means. Raises `UserError` that lists where it was looked for."""
    candidates = [Path(name), CONFIG_FOLDER / name, CONFIG_FOLDER / f"{name}.yaml"]
    for path in candidates:
        if os.path.isfile(path):  # False, too, for a name too long to be a file's, for which Path raises
            return path
    valid = [path.name for path in CONFIG_FOLDER.glob("*.yaml")]
    near = difflib.get_close_matches(Path(name).name, valid, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Available: {', '.join(sorted(valid))}."
    raise UserError(f"Config {name} does not exist, neither as a file nor in {CONFIG_FOLDER}. {hint}")


def save_config(config: DictConfig, path: Path) -> None:
    """Write the complete config, every default included."""
    path.write_text(OmegaConf.to_yaml(config, resolve=True))


def _strings(value: object) -> Iterator[str]:
    """Every string in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    for child in nested_children(value):
        yield from _strings(child)


def _fits(schema: type, given: DictConfig) -> bool:
    return set(given) <= set(OmegaConf.structured(schema))


def _merge(config: DictConfig, given: DictConfig | ListConfig, source: str) -> DictConfig:
    try:
        return OmegaConf.merge(config, given)
    except TypeError as error:  # a mapping where a list belongs, which OmegaConf does not locate
        raise UserError(f"{source}: {reason(error)}: a list is given as a mapping or the reverse.") from error
    except ConfigKeyError as error:
        parent, _, key = str(error.full_key).rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        valid = list(node) if isinstance(node, DictConfig) else [f for f in DatasetConfig.__dataclass_fields__]
        near = difflib.get_close_matches(key, map(str, valid), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Valid keys: {', '.join(map(str, valid))}."
        raise UserError(f"{source}: unknown key {error.full_key}. {hint}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {error.full_key or 'the config'} cannot be set: {reason(error)}") from error
