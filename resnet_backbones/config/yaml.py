"""YAML from anywhere, checked before OmegaConf builds anything of it."""

import re
from collections.abc import Iterable

import yaml

from ..nesting import expanded_size

LARGEST, LONGEST, LONGEST_NUMBER = 2**20, 10_000, 40  # characters of a file, of a value and of an integer
MOST_VALUES = 50_000  # with every alias written out
MOST_REFERENCES = 12  # ${key}; each may double what the next stands for


def check_yaml(text: str) -> None:
    """Raise `ValueError` or `YAMLError` saying why `text` is refused.

    Aliases and merge keys may not unfold to more values than a config can have, nor refer to themselves; of OmegaConf's
    resolvers there is only `oc.env`.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if root is None:
        return
    if expanded_size(root, _children) > MOST_VALUES:
        raise ValueError(f"it unfolds to more than {MOST_VALUES} values")
    # Not deduplicated: every node of `values` is written in the file, and so there are few.
    scalars = _scalars(root)
    for node in scalars:
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > LONGEST_NUMBER:
            raise ValueError(f"a number has {len(node.value)} digits: {node.value[:LONGEST_NUMBER]} …")
    check_references(node.value for node in scalars)


def check_references(values: Iterable[str]) -> None:
    """Raise `ValueError` for values too long to be any, and for references that could unfold without end."""
    count = 0
    for value in values:
        if len(value) > LONGEST:
            raise ValueError(f"a value has more than {LONGEST} characters: {value[:40]} …")
        for reference in re.finditer(r"\$\{", value):
            rest = value[reference.end() :].lstrip()
            if rest.startswith("oc.env:"):
                continue
            if not re.match(r"[\w.\[\]-]*\s*\}", rest):
                raise ValueError(f"a reference may be ${{key}} or ${{oc.env:NAME,default}}: {value[:80]}")
            count += 1
    if count > MOST_REFERENCES:
        raise ValueError(f"it has {count} references to other keys; {MOST_REFERENCES} are allowed")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _scalars(root: yaml.Node) -> list[yaml.ScalarNode]:
    found, open_nodes, seen = [], [root], set()
    while open_nodes:
        node = open_nodes.pop()
        if id(node) not in seen:
            seen.add(id(node))
            open_nodes += _children(node)
            if isinstance(node, yaml.ScalarNode):
                found.append(node)
    return found
