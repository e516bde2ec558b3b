"""A guard for YAML from people: libyaml's wrapper overflows the C stack on deep nesting, which no `except` catches."""

import yaml

DEEPEST = 50  # levels; Kubernetes objects of the kinds read here have about ten


def refuse_depth(text: str) -> None:
    """Raise ValueError for deep nesting, and yaml.YAMLError for what is no YAML; parsing to events does not recurse."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
