"""YAML as Kubernetes reads it.

PyYAML's loaders interpret plain scalars differently: for them 1:2:3:4:5:6:7:8 is a sexagesimal
number, 2026-01-01 a date and `=` an error, for Kubernetes all three are texts. libyaml's wrapper
overflows the C stack on deep nesting, which no `except` catches.
"""

import re
from typing import Any, TypeVar

import msgspec
import yaml

DEEPEST = 50  # levels; Kubernetes objects of the kinds read here have about ten
T = TypeVar("T")
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
    try:
        return list(yaml.load_all(text, Loader))
    except (AttributeError, LookupError, ValueError) as error:
        # What PyYAML makes of `!!bool x` and the like; some of these texts quote the value.
        raise ValueError("a value does not fit its type") from error


def convert(value: Any, to: type[T]) -> T:
    """Return an object of a type; msgspec.ValidationError for a value of another.

    As in Kubernetes, a field that is null is an absent one. That holds for the object and for those
    in its fields. It ends there, because aliases can make a short text endlessly deep.
    """
    return msgspec.convert(_without_nulls(value, levels=2), to)


def _without_nulls(value: Any, levels: int) -> Any:
    if not levels or not isinstance(value, dict):
        return value
    return {
        name: _without_nulls(each, levels - 1) for name, each in value.items() if each is not None
    }
