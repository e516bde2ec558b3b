"""The endpoint lists of a Service with many slices, at the price of the slices that changed.

Pure, but it remembers what it has read of each slice. A list is made of one chunk for each slice,
and a slice that did not change keeps its chunk. The lists hold the same endpoints as those of
`selection`, in the order of slices.
"""

from collections.abc import Iterable, Sequence
from operator import eq

import msgspec

from nftproxy import annotations
from nftproxy.address import Family
from nftproxy.chunks import LONG, compact
from nftproxy.model import EndpointSlice, Proto, Service, ServicePort, SliceEndpoint
from nftproxy.selection import (
    Backend,
    Endpoint,
    Lists,
    Locality,
    Notes,
    View,
    backend,
    endpoint_address,
    lists,
    merge,
    port_numbers,
)

# The endpoints of a slice that a list may consist of (contract 3.3, 3.4). `BY_NODE`: ready, and a
# hint names this node. Plain numbers, because they are used for each endpoint of a slice.
_READY, _BY_NODE, _BY_ZONE, _FALLBACK, _LOCAL_READY, _LOCAL_FALLBACK = _CHOICES = range(6)


class _Part(msgspec.Struct, frozen=True):
    """What one service port has of one slice."""

    piece: EndpointSlice
    numbers: list[int]  # of ports
    read: tuple[tuple[Backend, ...], ...]  # what each endpoint of the slice became
    backends: dict[Endpoint, Backend]
    choices: tuple[tuple[Endpoint, ...], ...]  # by number
    unhinted: tuple[int, int]  # ready endpoints without a hint for nodes, for zones
    here: frozenset[Endpoint]
    weight: int
    notes: Notes


class _Port:
    """The parts of one service port, and their sums."""

    def __init__(self) -> None:
        self.parts: dict[str, _Part] = {}
        self.sizes = [0] * len(_CHOICES)
        self.unhinted = [0, 0]
        self.overlapping = 0  # endpoints that several slices have
        self.local: set[str] = set()  # slices with endpoints on this node
        self.noted: set[str] = set()
        self.weighted: set[str] = set()  # slices whose weight is not the full one
        self._slices: dict[Endpoint, int] = {}  # how many slices have an endpoint

    def put(self, name: str, part: _Part | None) -> None:
        """Replace the part of a slice."""
        before = self.parts.get(name)
        had, has = before.backends if before else {}, part.backends if part else {}
        for endpoint in had.keys() - has.keys():
            self._count(endpoint, -1)
        for endpoint in has.keys() - had.keys():
            self._count(endpoint, 1)
        for each, sign in ((before, -1), (part, 1)):
            if each:
                for choice, endpoints in enumerate(each.choices):
                    self.sizes[choice] += sign * len(endpoints)
                for place, number in enumerate(each.unhinted):
                    self.unhinted[place] += sign * number
        if part is None:
            del self.parts[name]
        else:
            self.parts[name] = part
        for names, applies in (
            (self.noted, part and part.notes),
            (self.local, part and part.here),
            (self.weighted, part and part.weight != annotations.FULL),
        ):
            names.discard(name)
            if applies:
                names.add(name)

    def chosen(self, choice: int) -> Sequence[Endpoint]:
        """Return the endpoints of all slices, a chunk for each."""
        chunks = [part.choices[choice] for part in self.parts.values()]
        return compact(filter(None, chunks), self.sizes[choice])

    def _count(self, endpoint: Endpoint, step: int) -> None:
        before = self._slices.get(endpoint, 0)
        after = before + step
        self.overlapping += (after > 1) - (before > 1)
        if after:
            self._slices[endpoint] = after
        else:
            del self._slices[endpoint]


class LargeService:
    """The slices of one Service as last seen."""

    def __init__(self, service: Service, family: Family, here: Locality) -> None:
        self.service = service
        self.here = here
        self._family = family
        self._ports: dict[tuple[str, Proto], _Port] = {}

    def lists(
        self,
        seen: View,
        port: ServicePort,
        slices: tuple[EndpointSlice, ...],
        family: Family,
        here: Locality,
        notes: Notes,
    ) -> Lists:
        """Return the endpoint lists of one service port, as `selection.lists`."""
        known = self._ports.setdefault((port.name or "", port.protocol), _Port())
        for piece in slices:
            before = known.parts.get(piece.metadata.name)
            if before is None or before.piece is not piece:
                known.put(piece.metadata.name, _read(piece, port, self._family, self.here, before))
        if len(known.parts) > len(slices):
            for name in known.parts.keys() - {piece.metadata.name for piece in slices}:
                known.put(name, None)
        if known.overlapping:  # which of several wins depends on all of them (contract 3.2.2)
            return lists(seen, port, slices, family, here, notes)
        for name in sorted(known.noted):
            notes += known.parts[name].notes
        return _lists(seen, port, known)


def is_large(slices: Sequence[EndpointSlice]) -> bool:
    """Whether a Service with these slices is worth remembering."""
    return len(slices) > 1 and sum(len(piece.endpoints or ()) for piece in slices) > LONG


def _lists(seen: View, port: ServicePort, known: _Port) -> Lists:
    external = seen.externally_accessible(port)
    sizes = known.sizes
    choices: list[int] = []
    cluster: Sequence[Endpoint] = ()
    local: Sequence[Endpoint] = ()
    if external or not seen.internal_local:
        hinted = (
            choice
            for choice, unhinted in zip((_BY_NODE, _BY_ZONE), known.unhinted, strict=True)
            if sizes[choice] and not unhinted
        )
        ready = _READY if sizes[_READY] else _FALLBACK
        choices.append(next(hinted, ready))
        cluster = known.chosen(choices[0])
    uses_local = seen.internal_local or (seen.external_local and external)
    if uses_local:
        choices.append(_LOCAL_READY if sizes[_LOCAL_READY] else _LOCAL_FALLBACK)
        local = known.chosen(choices[-1])
    usable = sizes[_READY] + sizes[_FALLBACK]
    parts = [known.parts[name] for name in sorted(known.local)]
    here = (e for choice in choices for p in parts for e in p.choices[choice] if e in p.here)
    return Lists(
        cluster=cluster,
        local=local,
        usable_anywhere=bool(cluster) or (uses_local and bool(usable)),
        here=tuple(dict.fromkeys(here)),
        weights={
            endpoint: known.parts[name].weight
            for name in known.weighted
            for endpoint in known.parts[name].backends
        },
    )


def _read(
    piece: EndpointSlice, port: ServicePort, family: Family, here: Locality, before: _Part | None
) -> _Part:
    """Read a slice; endpoints that its former version has alike are not read again."""
    notes: Notes = []
    numbers = port_numbers(piece, port, family, notes)
    weight = annotations.weight(piece, notes) if numbers else annotations.FULL
    endpoints = piece.endpoints or () if numbers else ()
    head = tail = 0
    if before and (before.numbers, before.weight) == (numbers, weight) and not before.notes:
        head, tail = _alike(before.piece.endpoints or (), endpoints)
    read = list(before.read[:head]) if before else []
    for each in endpoints[head : len(endpoints) - tail]:
        address = endpoint_address(each, family, piece.metadata.name, notes)
        found = () if address is None else (Endpoint(address, number) for number in numbers)
        read.append(tuple(backend(endpoint, each, here.node, weight) for endpoint in found))
    if before and tail:
        read += before.read[-tail:]
    backends = {found.endpoint: found for each in read for found in each}
    if len(backends) < sum(map(len, read)):  # the slice names one twice (contract 3.2.2)
        backends = {found.endpoint: found for found in merge([piece], port, family, here.node, [])}
    return _Part(
        piece,
        numbers,
        tuple(read),
        backends,
        *_chosen(backends.values(), here),
        frozenset(endpoint for endpoint, found in backends.items() if found.is_local),
        weight,
        notes,
    )


def _alike(old: tuple[SliceEndpoint, ...], new: tuple[SliceEndpoint, ...]) -> tuple[int, int]:
    """Return how many endpoints two versions have alike from the start, and from the end."""
    least = min(len(old), len(new))
    head = next((n for n, same in enumerate(map(eq, old, new)) if not same), least)
    tail = 0
    while tail < least - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    return head, tail


def _chosen(
    backends: Iterable[Backend], here: Locality
) -> tuple[tuple[tuple[Endpoint, ...], ...], tuple[int, int]]:
    """Return the endpoints of each choice, and how many ready ones have no hint of each kind."""
    found: list[list[Endpoint]] = [[] for _ in _CHOICES]
    ready = found[_READY]
    nodeless = zoneless = 0
    for endpoint, is_ready, _, fallback, is_local, zones, nodes, _ in backends:
        if is_ready:
            ready.append(endpoint)
            nodeless += not nodes
            zoneless += not zones
            if here.node in nodes:
                found[_BY_NODE].append(endpoint)
            if here.zone in zones:
                found[_BY_ZONE].append(endpoint)
            if is_local:
                found[_LOCAL_READY].append(endpoint)
        if fallback:
            found[_FALLBACK].append(endpoint)
            if is_local:
                found[_LOCAL_FALLBACK].append(endpoint)
    return tuple(map(tuple, found)), (nodeless, zoneless)
