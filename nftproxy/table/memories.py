"""What clients are remembered for after a change: by memory, the endpoints that count.

Pure. A memory belongs to a service port with ClientIP affinity. Those that all ports of a Service
share are not here, because clients have to move between them (`sync/forgetting`).
"""

from collections.abc import Iterable, Iterator

from nftproxy.chunks import difference
from nftproxy.routes import Affinity
from nftproxy.table.remembered import Change, Remembered

Memory = tuple[str, frozenset[str]]
"""Its name, and the addresses of the endpoints that clients may be remembered with."""


def arrivals(changes: Iterable[Change], remembered: Remembered) -> Iterator[Memory]:
    """Yield the memories that service ports begin to use, where nobody may be known yet."""
    for old, new in _affinities(changes, remembered):
        for where, _ in new.memories(set(new.ports).difference(old.ports if old else ())):
            yield where, frozenset()


def departures(changes: Iterable[Change], remembered: Remembered) -> Iterator[Memory]:
    """Yield the memories of service ports that lose endpoints, with those that stay."""
    for old, new in _affinities(changes, remembered):
        if old and (difference(old.cluster, new.cluster)[0] or difference(old.local, new.local)[0]):
            yield from new.memories(set(new.ports).intersection(old.ports))


def _affinities(
    changes: Iterable[Change], remembered: Remembered
) -> Iterator[tuple[Affinity | None, Affinity]]:
    """Yield the affinities with memories of their own, each with its former state."""
    for name, new in (service for change in changes for service in change.services.items()):
        if new and new.affinities:
            old = remembered.services.get(name)
            # Memories of their own are not known while the ports share one
            known = {a.name: a for a in old.affinities if not a.part} if old else {}
            yield from ((known.get(a.name), a) for a in new.affinities if not a.part)
