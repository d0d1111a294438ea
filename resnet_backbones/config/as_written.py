"""YAML whose scalars are text, so that the schema alone decides on types: a class may be called yes, 01 or 1e3."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """`null` is the only scalar that is not text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for k, key in enumerate(keys) if key in keys[:k]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str | bytes) -> Any:
    """Mappings, lists, strings and None. Raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)
