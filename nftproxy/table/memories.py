"""What clients may be remembered with, before and after a change.

Pure. A memory belongs to a service port with ClientIP affinity or, where all ports of a Service
share what they remember, to a group of its endpoints. A change may begin to use a memory, take
endpoints away from one, and move endpoints from one group to another.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from nftproxy.chunks import difference
from nftproxy.routes import Affinity, Compiled
from nftproxy.sharing import Shared
from nftproxy.table import schema
from nftproxy.table.packing import shape
from nftproxy.table.remembered import Change, Remembered

Memory = tuple[str, frozenset[str]]
"""Name of a memory, and addresses of the endpoints that clients may be remembered with there."""
Usable = Mapping[str, AbstractSet[str]]
"""The same of several memories."""


class Regrouped(NamedTuple):
    """Memories that the ports of a Service share: who was usable before, and the state after."""

    before: Usable
    after: Shared


def current(remembered: Remembered) -> Iterator[Memory]:
    """Yield all memories in use."""
    for compiled in remembered.services.values():
        for affinity in compiled.affinities:
            yield from affinity.memories(affinity.ports)
        if compiled.shared:
            yield from compiled.shared.memories().items()


def begun(changes: Iterable[Change], remembered: Remembered) -> Iterator[str]:
    """Yield the names of memories that get into use."""
    for old, new in _services(changes, remembered):
        for before, after in _affinities(old, new):
            ports = set(after.ports).difference(before.ports if before else ())
            yield from (where for where, _ in after.memories(ports))
        if new.shared:
            yield from new.shared.memories().keys() - _usable(old).keys()


def reduced(changes: Iterable[Change], remembered: Remembered) -> Iterator[Memory]:
    """Yield the memories of service ports that lose endpoints, with those that stay."""
    for old, new in _services(changes, remembered):
        for before, after in _affinities(old, new):
            if before and (
                difference(before.cluster, after.cluster)[0]
                or difference(before.local, after.local)[0]
            ):
                yield from after.memories(set(after.ports).intersection(before.ports))


def regrouped(changes: Iterable[Change], remembered: Remembered) -> Iterator[Regrouped]:
    """Yield the shared memories of Services that remove endpoints or move them to another group."""
    for old, new in _services(changes, remembered):
        yield from _regrouped(_usable(old), new)


def reduced_since(before: Usable, remembered: Remembered) -> Iterator[Memory]:
    """Yield the memories of service ports that lost endpoints, with those that stay."""
    for affinity in remembered.affinities:
        for where, usable in affinity.memories(affinity.ports):
            if before.get(where, frozenset()) - usable:
                yield where, usable


def regrouped_since(before: Usable, remembered: Remembered) -> Iterator[Regrouped]:
    """Yield the shared memories of Services that removed endpoints or moved them."""
    of_services: dict[str, dict[str, AbstractSet[str]]] = {}
    for where, usable in before.items():
        place = schema.parse(where)
        if place and place.declaration.per is schema.Per.GROUP:
            of_services.setdefault(place.service, {})[where] = usable
    for compiled in remembered.services.values():
        if compiled.shared:
            yield from _regrouped(of_services.get(compiled.shared.service, {}), compiled)


def members(elements: Mapping[str, Mapping[bytes, bytes]]) -> dict[str, set[str]]:
    """Return the memories of which packed elements say who may be remembered."""
    found: dict[str, set[str]] = {}
    for where, packed in elements.items():
        place, form = schema.parse(where), shape(where)
        if place and form and (memory := schema.REMEMBERED_IN.get(place.declaration)):
            for address, *port in map(form.key.unpack, packed):
                name = memory.name(place.family, place.detail, *port)
                found.setdefault(name, set()).add(str(address))
    return found


def _services(
    changes: Iterable[Change], remembered: Remembered
) -> Iterator[tuple[Compiled | None, Compiled]]:
    """Yield the Services with affinity that changes leave, each with its former state."""
    for change in changes:
        for name, new in change.services.items():
            if new and new.affinities:
                yield remembered.services.get(name), new


def _affinities(old: Compiled | None, new: Compiled) -> Iterator[tuple[Affinity | None, Affinity]]:
    """Yield the affinities with memories of their own, each with its former state."""
    known = {each.name: each for each in old.affinities if not each.part} if old else {}
    yield from ((known.get(each.name), each) for each in new.affinities if not each.part)


def _regrouped(before: Usable, new: Compiled) -> Iterator[Regrouped]:
    """Yield the shared memories of a Service if an endpoint has left one of them."""
    if new.shared:
        after = new.shared.memories()
        if any(had - after.get(where, frozenset()) for where, had in before.items()):
            yield Regrouped(before, new.shared)


def _usable(compiled: Compiled | None) -> dict[str, frozenset[str]]:
    return compiled.shared.memories() if compiled and compiled.shared else {}
