"""YAML as Kubernetes reads it.

PyYAML's loaders interpret plain scalars differently: for them 1:2:3:4:5:6:7:8 is a sexagesimal
number, 2026-01-01 a date and `=` an error, for Kubernetes all three are texts. libyaml's wrapper
overflows the C stack on deep nesting, which no `except` catches.
"""

import re
from typing import Any

import yaml

DEEPEST = 50  # levels; Kubernetes objects of the kinds read here have about ten
_OTHERWISE = (":int", ":float", ":timestamp", ":value")


class Loader(yaml.CSafeLoader):
    """A loader with Kubernetes' idea of plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(_OTHERWISE)]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0[0-7_]+|0x[0-9a-fA-F_]+)\Z"),
    list("-+0123456789"),
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?\Z"),
    list("-+0123456789"),
)


def refuse_depth(text: str) -> None:
    """Raise ValueError for deep nesting, and yaml.YAMLError for invalid YAML.

    Parsing to events does not recurse.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")


def documents(text: str) -> list[Any]:
    """Return the documents in a text; ValueError or yaml.YAMLError if it is invalid."""
    refuse_depth(text)
    return list(yaml.load_all(text, Loader))
