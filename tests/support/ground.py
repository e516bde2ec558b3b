"""The lab that scenarios are played in.

A World with two nodes, two pods on each, two clients and a host outside.

The host outside and the nodes listen on every port that packets are sent to; all ways back lead
through the node that a packet came by. One load-balancer address is an address of node1 as well.
"""

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_network
from types import TracebackType
from typing import Self

from nftproxy.address import Family, parse_network
from nftproxy.configuration.settings import (
    ALL,
    BridgeInterface,
    Cidr,
    InterfaceNamePrefix,
    LocalDetector,
    NodePortNetworks,
)
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab import build
from nftproxy.lab.lab import Lab
from nftproxy.lab.plan import CLUSTER_CIDRS, SERVICE_CIDRS, LabNode
from nftproxy.store import Store
from nftproxy.sync.table import Table
from tests.support.oracle import Host, Link
from tests.support.strategies import (
    CLUSTER_IPS,
    ENDPOINT_PORTS,
    NODE_PORTS,
    OUTSIDE,
    PORTS,
    UNALLOCATED,
    UNDEFINED_NODE_PORT,
    UNDEFINED_PORT,
    Options,
)  # fmt: skip
from tests.support.world import CLUSTER, World, settings


class Ground:
    """A lab with proxies as some options want them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._cleanup = ExitStack()
        self._sources: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        with self._cleanup as cleanup:
            self.world = cleanup.enter_context(
                World(lab={"pods": 2, "clients": 2, "wiring": self._options.wiring})
            )
            self._listen()
            self._route()
            for node in self.lab.nodes:
                self.restart(node)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    @property
    def lab(self) -> Lab:
        """The lab."""
        return self.world.lab

    def table(self, node: LabNode) -> Table:
        """The table of a node."""
        return self.world.tables[node.name]

    def restart(self, node: LabNode) -> None:
        """Start a node's proxy with an empty memory and an empty store; its table stays."""
        self.table(node).kernel.close()
        chosen = settings(
            node.name,
            node.addresses,
            detector=self._detector(node),
            masquerade_all=self._options.masquerade_all,
            nodeports=self._node_ports(),
        )
        chosen = replace(chosen, allow_external_ips=self._options.external_ips)
        with self.lab.enter(node):
            kernel = Kernel()
        self.world.tables[node.name] = Table(chosen, Store(chosen.families), kernel)

    def host(self, node: LabNode, zone: str) -> Host:
        """A node as the oracle wants it."""
        links = []
        for family in Family:
            network = ip_network(
                f"{node.addresses[family]}/{24 if family is Family.IPv4 else 64}", strict=False
            )
            links += [
                Link(str(network), node.addresses[family]),
                Link(node.pod_cidrs[family], node.gateways[family]),
            ]
        more = (
            tuple(addresses[-1] for addresses in OUTSIDE.values()) if node.name == "node1" else ()
        )
        return Host(self.table(node).settings, zone, tuple(links), ("127.0.0.1", "::1", *more))

    def source(self, place: str, destination: str) -> str:
        """Return the address that the kernel of a place chooses towards a destination."""
        key = place, destination
        if key not in self._sources:
            kind = socket.AF_INET6 if ":" in destination else socket.AF_INET
            with self.lab.enter(place), socket.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.connect((destination, 9))
                self._sources[key] = str(sock.getsockname()[0])
        return self._sources[key]

    def _listen(self) -> None:
        ports = {*PORTS, *NODE_PORTS, UNDEFINED_PORT, UNDEFINED_NODE_PORT}
        for node in self.lab.nodes:
            self.lab.listen(node, (*ports, *ENDPOINT_PORTS))
        server = self.lab._server
        assert server is not None
        server.listen(
            self.lab.plan.underlay, "outside", sorted(ports), ("TCP", "UDP"), self.lab.families
        )

    def _route(self) -> None:
        outside = []
        for family in Family:
            everywhere = {*OUTSIDE[family], *CLUSTER_IPS[family], UNALLOCATED[family]}
            nodad = " nodad" if family is Family.IPv6 else ""
            outside += [f"addr add {address}/{family.bits} dev lo{nodad}" for address in everywhere]
            outside += [
                f"route add {node.pod_cidrs[family]} via {node.addresses[family]}"
                for node in self.lab.nodes
            ]
            for client, node, other in zip(
                self.lab.clients, self.lab.nodes, reversed(self.lab.nodes), strict=True
            ):
                back = (
                    f"route add {client.addresses[family]}/{family.bits} via "
                    f"{node.addresses[family]}"
                )
                outside.append(back)
                self.lab.ip(other, back)
                targets = (
                    SERVICE_CIDRS[family],
                    *(f"{address}/{family.bits}" for address in OUTSIDE[family]),
                )
                self.lab.ip(
                    client,
                    *(f"route replace {target} via {node.addresses[family]}" for target in targets),
                )
            self.lab.ip("node1", f"addr add {OUTSIDE[family][-1]}/{family.bits} dev lo")
        build.batch("ip", self.lab.plan.underlay, outside)

    def _detector(self, node: LabNode) -> LocalDetector | None:
        bridged = self._options.wiring == "bridge"
        match self._options.detector:
            case "cluster":
                return CLUSTER
            case "ipv4-only":
                return Cidr({Family.IPv4: parse_network(CLUSTER_CIDRS[Family.IPv4])})
            case "node":
                return Cidr(
                    {family: parse_network(text) for family, text in node.pod_cidrs.items()}
                )
            case "bridge":
                return BridgeInterface("cni0" if bridged else "veth1")
            case "prefix":
                return InterfaceNamePrefix("cn" if bridged else "veth")
            case _:
                return None

    def _node_ports(self) -> Mapping[Family, NodePortNetworks] | None:
        match self._options.node_ports:
            case "all":
                return dict.fromkeys(Family, ALL)
            case "pods":
                return {family: (parse_network(text),) for family, text in CLUSTER_CIDRS.items()}
            case _:
                return None
