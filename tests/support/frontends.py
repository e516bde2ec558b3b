"""Services for packet tests.

Each has addresses and ports of its own, so that one World serves a whole module.

    web = Web(world)
    web.apply("pod1-1", "pod2-1", externalTrafficPolicy="Local")
    answer = world.ask("client", *web.at("vip", wire))

A Web has all four kinds of frontends in both families, for TCP and for UDP.
"""

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import pytest
from nftables import Nftables

from nftproxy.address import Family
from nftproxy.kernel.reader import Reader
from nftproxy.lab.client import Refused, Silent
from nftproxy.lab.namespace import enter
from nftproxy.model import EndpointSlice, Service
from nftproxy.sync.report import Report
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.running import eventually
from tests.support.world import World

Kind = Literal["cluster", "external", "vip", "nodeport"]
EXTERNAL: tuple[Kind, ...] = ("external", "vip", "nodeport")
KINDS: tuple[Kind, ...] = ("cluster", *EXTERNAL)
ROUTES = ("203.0.112.0/20", "198.18.0.0/15", "fd00:beef::/64", "fd00:cafe::/64")
"""Where load-balancer addresses and external IPs come from.

The world outside sends them to node1.
"""

PORT_NAMES = {"tcp": "TCP", "udp": "UDP"}

SILENCE = 0.08
"""How long to wait, in seconds, for somebody who should not answer."""

DROPPED = 0.02
"""How long to wait, in seconds, where a counter tells that the packet was dropped."""


class Wire(NamedTuple):
    """What a connection is made of."""

    family: Family
    protocol: str

    def __str__(self) -> str:
        return f"{self.protocol.lower()}{self.family.digit}"


WIRES = [Wire(family, protocol) for family in Family for protocol in ("TCP", "UDP")]
each_wire = pytest.mark.parametrize("wire", WIRES, ids=str)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_external = pytest.mark.parametrize("kind", EXTERNAL)

_numbers = itertools.count(1)
Value = TypeVar("Value")
Ready = str | tuple[str, dict[str, Any]]  # a place, or a place and conditions or hints


def route_outside(world: World) -> None:
    """Have the clients send load-balancer addresses and external IPs to node1."""
    for client in world.lab.clients:
        for cidr in ROUTES:
            if (Family.IPv6 if ":" in cidr else Family.IPv4) in world.lab.families:
                world.lab.route(client, cidr, "node1")


class Web:
    """A Service that no other test knows, with its slices.

    Of all families and protocols, or of one.
    """

    def __init__(self, world: World, only: Wire | None = None) -> None:
        number = next(_numbers)
        self.world = world
        self.families = (only.family,) if only else world.lab.families
        self.names = {only.protocol.lower(): only.protocol} if only else PORT_NAMES
        self.name = f"web{number}"
        self.port = 80
        self.node_port = 30000 + number
        high, low = divmod(number, 250)
        self._addresses: dict[Kind, dict[Family, str]] = {
            "cluster": {
                Family.IPv4: f"10.96.{high}.{low + 1}",
                Family.IPv6: f"fd00:10:96::{number:x}",
            },
            "vip": {
                Family.IPv4: f"203.0.{112 + high}.{low + 1}",
                Family.IPv6: f"fd00:beef::{number:x}",
            },
            "external": {
                Family.IPv4: f"198.18.{high}.{low + 1}",
                Family.IPv6: f"fd00:cafe::{number:x}",
            },
        }

    def address(self, kind: Kind, family: Family, node: str = "node1") -> str:
        """The address of a frontend; of a NodePort, that of a node."""
        return (
            self.world.address(node, family)
            if kind == "nodeport"
            else self._addresses[kind][family]
        )

    def at(self, kind: Kind, wire: Wire, node: str = "node1") -> tuple[str, int, str]:
        """Address, port and protocol of a frontend."""
        return (
            self.address(kind, wire.family, node),
            self.node_port if kind == "nodeport" else self.port,
            wire.protocol,
        )

    def service(self, **spec: Any) -> Service:
        """The Service; `spec` in the API's spelling replaces what it has by default."""
        ports = [
            {"name": name, "protocol": protocol, "port": self.port, "nodePort": self.node_port}
            for name, protocol in self.names.items()
        ]
        default: dict[str, Any] = {
            "cluster_ip": [self._addresses["cluster"][f] for f in self.families],
            "vips": [self._addresses["vip"][f] for f in self.families],
            "externalIPs": [self._addresses["external"][f] for f in self.families],
            "ports": ports,
        }
        return service(self.name, **{**default, **spec})

    def slices(
        self,
        *places: Ready,
        port: int = 8080,
        suffix: str = "",
        names: Mapping[str, str] | None = None,
    ) -> list[EndpointSlice]:
        """Its slices, one per family.

        Pods, nodes and clients by name as endpoints, or with conditions or hints.

        `names` are the names of the ports and their protocols.
        """
        found = []
        for family in self.families:
            endpoints = []
            for each in places:
                name, more = (each, {}) if isinstance(each, str) else each
                place = self.world.lab.place(name)
                node = getattr(place, "node", name if name.startswith("node") else "")
                endpoints.append(endpoint(place.addresses[family], **{"node": node, **more}))
            ports = [
                {"name": name, "port": port, "protocol": protocol}
                for name, protocol in (names or self.names).items()
            ]
            name = f"{self.name}-{family.lower()}{suffix}"
            found.append(
                endpoint_slice(self.name, endpoints, name=name, ports=ports, family=family)
            )
        return found

    def apply(self, *places: Ready, port: int = 8080, **spec: Any) -> list[Report]:
        """Deliver the Service and its slices to all nodes."""
        return self.world.apply(self.service(**spec), *self.slices(*places, port=port))

    def delete(self) -> None:
        """Delete the Service and its slices, and what else the tables hold because of it."""
        self.world.delete(self.service(), *self.slices())
        for table in self.world.tables.values():
            table.tidy()

    def answers(
        self,
        where: str,
        kind: Kind,
        wire: Wire,
        *,
        node: str = "node1",
        times: int = 48,
        **options: Any,
    ) -> set[str]:
        """Who answers. That one of three endpoints is not among 48 answers happens once in 100
        million runs.
        """
        return set(self.world.answers(where, *self.at(kind, wire, node), times=times, **options))

    def refusal_counter(self, kind: Kind, wire: Wire, node: str = "node1") -> int:
        """How many packets the no-endpoints entry of a frontend has seen on a node."""
        address, port, protocol = self.at(kind, wire)
        if kind == "nodeport":
            return self.world.dropped(
                node, f"nodeport_no_endpoints{wire.family.digit}", f"{protocol.lower()} . {port}"
            )
        return self.world.dropped(
            node, f"no_endpoints{wire.family.digit}", f"{address} . {protocol.lower()} . {port}"
        )

    def assert_dropped(self, where: str, kind: Kind, wire: Wire, node: str = "node1") -> None:
        """A connection is met with silence, and it is the entry of this frontend on `node` that
        dropped it.
        """
        before = self.refusal_counter(kind, wire, node)
        outcome = self.world.connect(where, *self.at(kind, wire, node), timeout=DROPPED)
        assert outcome == Silent(), f"{where} -> {kind}: {outcome}"
        assert becomes(lambda: self.refusal_counter(kind, wire, node), before + 1) == before + 1

    def assert_refused(self, where: str, kind: Kind, wire: Wire, node: str = "node1") -> None:
        """A connection is refused at once."""
        outcome = self.world.connect(where, *self.at(kind, wire, node), timeout=5.0)
        assert outcome == Refused(), f"{where} -> {kind}: {outcome}"


def becomes(read: Callable[[], Value], expected: Value, patience: float = 2.0) -> Value:
    """Read until it is what is expected, or for some seconds; the last reading.

    A busy machine counts a packet a moment later.
    """
    deadline = time.monotonic() + patience
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.001)
    return found


def masked(world: World, node: str, answered_by: str, family: Family) -> str:
    """The source that an endpoint sees of a connection which `node` masqueraded.

    The address of the interface towards it.
    """
    own = world.lab.place(node)
    behind = getattr(world.lab.place(answered_by), "node", None)
    if behind == node:
        return str(own.gateways[family])  # type: ignore[attr-defined]
    return own.addresses[family]


def add_address(world: World, where: str, address: str) -> None:
    """Give a place one more address of its own.

    Of IPv6 the kernel makes the local route a moment later.
    """
    world.lab.ip(where, f"addr replace {address}/{128 if ':' in address else 32} dev lo")

    def taken() -> bool:
        with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect((address, 9))
            return bool(probe.getsockname()[0] == address)
        return False

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with world.lab.enter(where):
        eventually(taken, why=lambda: f"{where} does not take {address}")


def nft(world: World, node: str, command: str) -> Any:
    """What libnftables answers to a command on a node, as JSON."""
    with world.lab.enter(node):
        library = Nftables()
        library.set_json_output(True)
        code, output, error = library.cmd(command)
    assert not code, f"{command[:200]}: {error}"
    return json.loads(output)["nftables"][1:] if output else []


def listing(world: World, node: str, what: str) -> list[dict[str, Any]]:
    """What `nft list ...` says on a node; without the first item, which says who says it."""
    return list(nft(world, node, f"list {what}"))


def rule_counters(world: World, node: str, chain: str) -> list[int]:
    """The packets that the counting rules of a chain of ours have seen, top to bottom."""
    return [
        part["counter"]["packets"]
        for item in listing(world, node, f"chain inet nftproxy {chain}")
        if "rule" in item
        for part in item["rule"]["expr"]
        if "counter" in part
    ]


@contextlib.contextmanager
def foreign_rules(world: World, node: str, rules: str) -> Iterator[None]:
    """Another program's table `inet foreign` on a node, for the length of a block."""
    nft(world, node, f"table inet foreign {{\n{rules}\n}}\n")
    try:
        yield
    finally:
        nft(world, node, "delete table inet foreign")


def foreign_counter(world: World, node: str, name: str) -> int:
    """The packets of a named counter of `inet foreign`."""
    (item,) = listing(world, node, f"counter inet foreign {name}")
    return int(item["counter"]["packets"])


def passes(world: World, node: str, name: str) -> bool:
    """Whether a named counter of `inet foreign` sees exactly one packet."""
    return becomes(lambda: foreign_counter(world, node, name), 1) == 1


@contextlib.contextmanager
def reading(world: World, node: str) -> Iterator[Reader]:
    """Look into the table of a node."""
    with enter(world.lab.place(node).namespace):
        reader = Reader()
    try:
        yield reader
    finally:
        reader.close()
