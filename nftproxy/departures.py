"""Which endpoints have left all EndpointSlices, of all Services.

Pure. Remembers the slices that syncs have looked at, and which of them have an address, so that a
change costs what it changes. An endpoint that terminates or is not ready is still listed. A pod
that leaves one Service and goes on in another, perhaps at another port, is not gone: `targetRef`
says that it is the same pod. Without a `targetRef`, the same address counts as the same endpoint.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from nftproxy.address import Family, parse_address
from nftproxy.errors import AddressError
from nftproxy.model import EndpointSlice, ObjectName, Proto, SliceEndpoint
from nftproxy.selection import refusal
from nftproxy.store import Pending

Place = tuple[str, str, int]
"""The address, protocol (in nft's spelling) and port of an endpoint."""


class Moves(NamedTuple):
    """The effect of a change: endpoints in no slice any more, and addresses newly in a slice."""

    left: set[Place]
    came: set[str]


class Departures:
    """The endpoints of one family that slices list."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._slices: dict[ObjectName, dict[str, EndpointSlice]] = {}
        self._where: dict[str, tuple[tuple[ObjectName, str], ...]] = {}  # address -> its slices
        # By address: what a pod left that goes on elsewhere, and which pod
        self._kept: dict[str, dict[Place, str]] = {}

    def saw(self, services: Mapping[ObjectName, Pending]) -> Moves:
        """Enter the slices of Services as a sync looks at them; return what that changes."""
        left: dict[Place, str] = {}
        touched: set[str] = set()
        came: set[str] = set()
        for name, (_, slices) in services.items():
            for old, new in self._changes(name, slices):
                had, has = self._entries(old), self._entries(new)
                self._index(name, old, new, had, has, came)
                ports, others = _ports(old), _ports(new)
                for entry in had if ports - others else had - has:
                    address, pod = entry
                    gone = ports - others if entry in has else ports
                    left |= {(address, proto, port): pod for proto, port in gone}
                touched |= {address for address, _ in had - has}
        for address in self._kept.keys() & touched:
            left = self._kept.pop(address) | left
        return Moves({place for place, pod in left.items() if self._is_gone(place, pod)}, came)

    def lists(self, place: Place) -> bool:
        """Whether a slice has an endpoint."""
        address, *port = place
        return any(tuple(port) in _ports(piece) for piece in self._having(address))

    def knows(self, address: str) -> bool:
        """Whether a slice has an address, at any port."""
        return address in self._where

    def _changes(
        self, name: ObjectName, slices: tuple[EndpointSlice, ...]
    ) -> Iterator[tuple[EndpointSlice | None, EndpointSlice | None]]:
        """Yield each slice of a Service that is another one now, before and after."""
        known = self._slices.pop(name, {})
        new = {piece.metadata.name: piece for piece in slices}
        if new:
            self._slices[name] = new
        for piece in known.keys() | new.keys():
            if known.get(piece) is not new.get(piece):
                yield known.get(piece), new.get(piece)

    def _entries(self, piece: EndpointSlice | None) -> set[tuple[str, str]]:
        """Return the addresses of a slice in canonical form, with their pods."""
        if piece is None or piece.address_type != self._family:
            return set()
        found = ((_address(each, self._family), _pod(each)) for each in piece.endpoints or ())
        return {(address, pod) for address, pod in found if address}

    def _index(
        self,
        name: ObjectName,
        old: EndpointSlice | None,
        new: EndpointSlice | None,
        had: set[tuple[str, str]],
        has: set[tuple[str, str]],
        came: set[str],
    ) -> None:
        """Note which addresses a slice has; add those that it newly has to `came`."""
        piece = new or old
        assert piece  # noqa: S101 - one of the two is there
        reference = name, piece.metadata.name
        before, after = {address for address, _ in had}, {address for address, _ in has}
        for address in before - after:
            rest = tuple(each for each in self._where[address] if each != reference)
            if rest:
                self._where[address] = rest
            else:
                del self._where[address]
        for address in after - before:
            self._where[address] = (*self._where.get(address, ()), reference)
        came |= after - before

    def _is_gone(self, place: Place, pod: str) -> bool:
        """Whether no slice has an endpoint any more, nor its pod."""
        if self.lists(place):
            return False
        for piece in self._having(place[0]):
            for each in piece.endpoints or ():
                if _pod(each) == pod and _address(each, self._family) == place[0]:
                    self._kept.setdefault(place[0], {})[place] = pod
                    return False
        return True

    def _having(self, address: str) -> Iterator[EndpointSlice]:
        for service, piece in self._where.get(address, ()):
            yield self._slices[service][piece]


def _address(each: SliceEndpoint, family: Family) -> str:
    """Return the address of an endpoint; empty where nothing can be sent to it."""
    return _usable(each.addresses[0], family) if each.addresses else ""


@lru_cache(8192)
def _usable(text: str, family: Family) -> str:
    try:
        address = parse_address(text)
    except AddressError:
        return ""
    return address.text if address.family is family and not refusal(address) else ""


def _ports(piece: EndpointSlice | None) -> set[tuple[str, int]]:
    ports = (piece and piece.ports) or ()
    return {((each.protocol or Proto.TCP).nft, each.port) for each in ports if each.port}


def _pod(each: SliceEndpoint) -> str:
    return (each.target_ref and each.target_ref.uid) or ""
