"""Which endpoints of the table are looked at: all of a few, those near this node first. Pure.

A table may hold a hundred thousand, and a route costs the kernel and us a millisecond each. Pods of
this node and the node itself are recognized by routes without a gateway.
"""

from collections.abc import Iterable
from typing import NamedTuple

from nftproxy.address import Address, Family, Network, mask
from nftproxy.doctor.facts import Interface, RouteFact
from nftproxy.kernel.snapshot import AddressKind, Snapshot


class EndpointPlace(NamedTuple):
    """An endpoint, and whether anybody outside of the cluster may be sent to it."""

    address: str
    port: int
    protocol: str
    outside: bool


def places(seen: Snapshot) -> list[EndpointPlace]:
    """Return all endpoints of the table, each once."""
    found: dict[tuple[str, int, str], bool] = {}
    for port in seen.services:
        for shown in port.frontends:
            outside = shown.kind is not AddressKind.CLUSTER_IP
            for listed in (*shown.cluster, *shown.local):
                key = listed.address, listed.port, shown.protocol
                found[key] = found.get(key, False) or outside
    return [EndpointPlace(*key, outside) for key, outside in found.items()]


def sample(
    found: list[EndpointPlace],
    routes: Iterable[RouteFact],
    interfaces: Iterable[Interface],
    most: int,
) -> list[EndpointPlace]:
    """Return `most` at most: up to half of them near this node, the others from everywhere."""
    near = _Near(routes, interfaces)
    here = [place for place in found if near.has(place.address)]
    there = [place for place in found if not near.has(place.address)]
    first = here[: max(most // 2, most - len(there))]
    rest = most - len(first)
    return [*first, *there[:: max(1, -(-len(there) // max(1, rest)))][:rest]]


class _Near:
    """The addresses of this node, and those that it reaches without a gateway."""

    def __init__(self, routes: Iterable[RouteFact], interfaces: Iterable[Interface]) -> None:
        self._single = {text for interface in interfaces for text, _ in interface.addresses}
        self._wide: list[Network] = []
        for route in routes:
            if route.gateway or route.is_default or route.kind != "unicast":
                continue
            if route.network.length == route.network.family.bits:
                self._single.add(route.network.text)
            else:
                self._wide.append(route.network)
        self._known: dict[str, bool] = {}

    def has(self, text: str) -> bool:
        if text not in self._known:
            family = Family.IPv6 if ":" in text else Family.IPv4
            address = Address(family, text)
            self._known[text] = text in self._single or any(
                network.family is family and mask(address, network.length).text == network.text
                for network in self._wide
            )
        return self._known[text]
