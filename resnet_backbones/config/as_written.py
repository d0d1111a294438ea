"""YAML whose scalars are text, so that the schema alone decides their types: a class may be called yes, 01 or 1e3."""

import re
from typing import Any

import yaml

INTEGER, TEXT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """Only null and integers in Python's notation are not text; a text field turns them back into it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        texts = [key.value for key in keys]
        twice = next((text for k, text in enumerate(texts) if text in texts[:k]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice}", node.start_mark)
        for key in keys:
            key.tag = TEXT if key.tag == INTEGER else key.tag
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INTEGER, re.compile(r"(0|-?[1-9][0-9]*)$"), list("-0123456789"))


def parse_yaml(text: str | bytes) -> Any:
    """Mappings, lists, text, integers and None. Raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)
