"""A cluster for packet tests.

A lab whose nodes each have a table kept by our own code, in this process.

with World() as world:
    world.apply(service(...), endpoint_slice(...))
    assert world.ask("pod1-1", "10.96.0.10", 80).name == "pod2-1"
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from nftproxy.address import Address, Family, parse_address, parse_network
from nftproxy.configuration.settings import (
    ALL,
    Cidr,
    LocalDetector,
    NodePortNetworks,
    NodeSettings,
    OnLocalhost,
)
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.client import Answer, Outcome
from nftproxy.lab.lab import Lab
from nftproxy.lab.namespace import enter
from nftproxy.lab.plan import CLUSTER_CIDRS, SERVICE_CIDRS
from nftproxy.model import EndpointSlice, Node, Object, ObjectName, Service, ServiceCIDR
from nftproxy.store import Store
from nftproxy.sync.report import Report
from nftproxy.sync.table import Table
from tests.support.objects import endpoint, endpoint_slice

_numbers = itertools.count()
CLUSTER = Cidr({family: parse_network(text) for family, text in CLUSTER_CIDRS.items()})
VIP = {Family.IPv4: "203.0.113.10", Family.IPv6: "fd00:beef::10"}
# How much slower than usual this machine is, such as an emulated one
SLOW = float(os.environ.get("NFTPROXY_SLOW", "1"))
CLUSTER_IP = {Family.IPv4: "10.96.0.10", Family.IPv6: "fd00:10:96::10"}


def unique_name() -> str:
    """A lab name that no other test has."""
    return f"t{os.getpid()}-{next(_numbers)}"


def settings(
    node: str = "node1",
    addresses: Mapping[Family, str] | None = None,
    *,
    families: Iterable[Family] = Family,
    detector: LocalDetector | None = CLUSTER,
    masquerade_all: bool = False,
    nodeports: Mapping[Family, NodePortNetworks] | None = None,
    allow_external_ips: bool = True,
    log_refusals: bool = False,
    no_masquerade: Iterable[str] = (),
    reset_gone: bool = False,
    on_localhost: OnLocalhost = OnLocalhost.UNTOUCHED,
) -> NodeSettings:
    """Node settings; NodePorts on the node's own addresses unless told otherwise."""
    addresses = addresses or {Family.IPv4: "192.168.50.11", Family.IPv6: "fd00:50::11"}
    own = {family: parse_address(addresses[family]) for family in families}
    return NodeSettings(
        node_name=node,
        families=tuple(own),
        node_ips=own,
        detector=detector,
        masquerade_bit=0x4000,
        masquerade_all=masquerade_all,
        nodeport_addresses=nodeports
        or {f: (parse_network(f"{a.text}/{f.bits}"),) for f, a in own.items()},
        allow_external_ips=allow_external_ips,
        sync_period=30,
        min_sync_period=0.05,
        log_refusals=log_refusals,
        no_masquerade={
            family: tuple(n for n in map(parse_network, no_masquerade) if n.family is family)
            for family in own
        },
        reset_gone=reset_gone,
        on_localhost=dict.fromkeys(own, on_localhost),
    )


class World:
    """A lab with a table on every node; `options` go to `settings`, `lab` to Lab."""

    def __init__(self, *, lab: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.lab = Lab(unique_name(), **(lab or {}))
        self.tables: dict[str, Table] = {}
        self._options = options

    def __enter__(self) -> Self:
        self.lab.up()
        try:
            for node in self.lab.nodes:
                self.start(node.name)
            for family in self.lab.families:  # what the outside world sends to the first node
                for client in self.lab.clients:
                    for cidr in (SERVICE_CIDRS[family], f"{VIP[family]}/{family.bits}"):
                        self.lab.route(client, cidr, "node1")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for table in self.tables.values():
            table.kernel.close()
        self.lab.down()

    def start(self, node: str, **options: Any) -> Table:
        """Start, or start again, the proxy of a node with an empty memory and an empty store."""
        place = next(n for n in self.lab.nodes if n.name == node)
        if node in self.tables:
            self.tables[node].kernel.close()
        chosen = {"families": self.lab.families, **self._options, **options}
        node_settings = settings(node, place.addresses, **chosen)
        with enter(place.namespace):
            kernel = Kernel()
        self.tables[node] = Table(node_settings, Store(node_settings.families), kernel)
        return self.tables[node]

    def apply(self, *objects: Object) -> list[Report]:
        """Deliver objects to all nodes and sync."""
        for table in self.tables.values():
            for item in objects:
                table.store.put(item)
        return self.sync()

    def delete(self, *objects: Object) -> list[Report]:
        """Deliver deletions to all nodes and sync."""
        for table in self.tables.values():
            for item in objects:
                table.store.remove(type(item), item.metadata.key)
        return self.sync()

    def sync(self) -> list[Report]:
        """Sync all families of all nodes; nothing may be refused."""
        reports: list[Report] = []
        for node in self.lab.nodes:
            table = self.tables[node.name]
            own = [
                parse_address(text)
                for text in (*node.addresses.values(), *node.gateways.values(), "127.0.0.1", "::1")
            ]
            reports += [table.sync(family, own) for family in table.settings.families]
        assert not any(report.refused for report in reports), [report.refused for report in reports]
        return reports

    def endpoints(self, *pods: str, family: Family = Family.IPv4, **options: Any) -> EndpointSlice:
        """A slice with the named pods as ready endpoints."""
        known = {pod.name: pod for pod in self.lab.pods}
        found = [endpoint(known[name].addresses[family], known[name].node) for name in pods]
        return endpoint_slice(endpoints=found, family=family, **options)

    def address(self, place: str, family: Family = Family.IPv4) -> str:
        """The address of a node, pod or client."""
        return self.lab.place(place).addresses[family]

    def connect(
        self, where: str, address: str, port: int, protocol: str = "TCP", **options: Any
    ) -> Outcome:
        """Connect from a place: what became of it."""
        options.setdefault("timeout", 1.0 * SLOW)
        return self.lab.connect(where, address, port, protocol, **options)

    def ask(
        self, where: str, address: str, port: int, protocol: str = "TCP", **options: Any
    ) -> Answer:
        """Connect from a place: the answer; anything else fails."""
        # A busy machine takes its time
        outcome = self.connect(where, address, port, protocol, **{"timeout": 5.0, **options})
        assert isinstance(outcome, Answer), f"{where} -> {address}:{port}/{protocol}: {outcome}"
        return outcome

    def answers(
        self,
        where: str,
        address: str,
        port: int,
        protocol: str = "TCP",
        *,
        times: int = 24,
        **options: Any,
    ) -> Counter[str]:
        """Connect several times: who answered how often."""
        return Counter(
            self.ask(where, address, port, protocol, **options).name for _ in range(times)
        )

    def dropped(self, node: str, where: str, key: str) -> int:
        """How many packets an element that drops has seen on a node: a look at its counter."""
        return next((c for k, c in self.counters(node, where).items() if k == key), 0)

    def counters(self, node: str, where: str) -> dict[str, int]:
        """The packet counters of a map, by key as text."""
        from nftproxy.kernel.reader import Reader

        with enter(self.lab.place(node).namespace):
            reader = Reader()
        try:
            return {
                " . ".join(map(str, counted.element.key)): counted.packets
                for counted in reader.counted(where)
            }
        finally:
            reader.close()


__all__ = [
    "ALL", "CLUSTER", "CLUSTER_IP", "VIP", "Address", "Node", "ObjectName", "Service",
    "ServiceCIDR", "World", "settings", "unique_name",
]  # fmt: skip
