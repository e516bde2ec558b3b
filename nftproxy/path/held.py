"""What our table holds for one key.

Looked up in the kernel, or in the elements that a sync would write.

Pure except for what `Ruleset` is asked. Both answer alike, so whoever explains a Service does not
care which it is.
"""

from collections.abc import Mapping
from typing import Protocol

from nftproxy.address import Address, Family, pack, parse_network
from nftproxy.path.ruleset import OURS, Ruleset
from nftproxy.routes import Frontend, Key, Value, Verdict
from nftproxy.table import schema
from nftproxy.table.packing import shape, unpack_value
from nftproxy.table.schema import Declaration

_VERBS = {0: "drop", 1: "accept", -3: "jump", -4: "goto"}


class Held(Protocol):
    """Elements of our table."""

    def get(self, name: str, key: Key) -> tuple[bool, Value]:
        """Return whether a set or map has a key, and its value."""


class HeldByKernel:
    """Elements as the kernel has them now."""

    def __init__(self, rules: Ruleset) -> None:
        self._rules = rules

    def get(self, name: str, key: Key) -> tuple[bool, Value]:
        """Return whether a set or map has a key, and its value."""
        held = shape(name)
        packed = held.key.pack(key) if held else b"".join(_packed(part) for part in key)
        element = self._rules.element(OURS, name, packed)
        if element is None:
            return False, None
        if element.code is not None:
            return True, Verdict(
                _VERBS.get(element.code, str(element.code)), element.target, element.comment
            )
        return True, unpack_value(element.data, held.value) if held and held.value else None


class HeldByPlan:
    """Elements that a sync would write."""

    def __init__(self, elements: Mapping[str, Mapping[Key, Value]]) -> None:
        self._elements = elements

    def get(self, name: str, key: Key) -> tuple[bool, Value]:
        """Return whether a set or map has a key, and its value."""
        place = schema.parse(name)
        found = self._elements.get(name, {})
        if place and place.declaration.interval:
            address = Address(place.family, str(key[0]))
            return any(parse_network(str(each[0])).contains(address) for each in found), None
        return key in found, found.get(key)


def _packed(part: str | int) -> bytes:
    return pack(str(part))


def verdict(
    held: Held, declaration: Declaration, family: Family, frontend: Frontend
) -> Verdict | None:
    """Return where a map of verdicts sends packets for a frontend."""
    found, value = held.get(declaration.name(family, node_port=frontend.is_node_port), frontend.key)
    return value if found and isinstance(value, Verdict) else None


def has(held: Held, declaration: Declaration, family: Family, address: str) -> bool:
    """Whether a set of addresses has one."""
    return held.get(declaration.name(family), (address,))[0]
