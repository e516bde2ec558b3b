"""The places of a lab: a pure function from a `Shape` to names and addresses.

Every address can be read off a name: node 2 is 192.168.50.12 and fd00:50::12, its second pod
10.244.2.3 and fd00:244:2::3. Numbers are written into IPv6 addresses as their decimal digits, so
that both families read alike. Namespaces are named LAB.PLACE; a lab's name has no dot, so the
prefix `LAB.` belongs to one lab only.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from nftproxy.address import Family
from nftproxy.errors import NftproxyError

CLUSTER_CIDRS: Mapping[Family, str] = {Family.IPv4: "10.244.0.0/16", Family.IPv6: "fd00:244::/32"}
"""Contains the pod CIDRs of all nodes."""

SERVICE_CIDRS: Mapping[Family, str] = {Family.IPv4: "10.96.0.0/16", Family.IPv6: "fd00:10:96::/112"}
"""The range of ClusterIPs in a lab. No place has such an address."""

ROUTER: Mapping[Family, str] = {Family.IPv4: "192.168.50.1", Family.IPv6: "fd00:50::1"}
"""The nodes' default gateway.

It forwards nothing, but a node needs a route before it can send to a service address at all.
"""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


class Shape(msgspec.Struct, frozen=True):
    """The shape of a lab, from which everything else follows.

    wiring            "bridge": pods are attached to cni0, as with flannel; packets of pods
                      enter the node through `cni0`.
                      "routed": no bridge, a route per pod, as with Calico; packets of pods
                      enter the node through `veth*`.
    bridge_netfilter  whether nodes pass bridged packets to netfilter, as Kubernetes nodes do
                      (topology says what follows if not)
    """

    name: str = "lab"
    nodes: int = 2
    pods: int = 3
    clients: int = 1
    families: tuple[Family, ...] = (Family.IPv4, Family.IPv6)
    vxlan: bool = False
    wiring: Literal["bridge", "routed"] = "bridge"
    bridge_netfilter: bool = True


@dataclass(frozen=True)
class LabPlace:
    """Anything with a network namespace, and one address per family that others reach it by."""

    name: str
    namespace: str
    number: int
    addresses: Mapping[Family, str]


@dataclass(frozen=True)
class LabClient(LabPlace):
    """A host outside the cluster, on the underlay."""


@dataclass(frozen=True)
class Pod(LabPlace):
    """A pod; `veth` is the name of its link on its node."""

    node: str
    veth: str


@dataclass(frozen=True)
class LabNode(LabPlace):
    """A node; `gateways` are its own addresses towards its pods."""

    pod_cidrs: Mapping[Family, str]
    gateways: Mapping[Family, str]
    pods: tuple[Pod, ...] = field(repr=False)


@dataclass(frozen=True)
class LabPlan:
    """All places of a lab. `underlay` is the namespace of the switch between nodes and clients."""

    shape: Shape
    underlay: str
    nodes: tuple[LabNode, ...]
    clients: tuple[LabClient, ...]

    @property
    def pods(self) -> tuple[Pod, ...]:
        """The pods of all nodes, in order of node and number."""
        return tuple(pod for node in self.nodes for pod in node.pods)

    @property
    def places(self) -> Iterator[LabPlace]:
        """Nodes, then pods, then clients."""
        yield from self.nodes
        yield from self.pods
        yield from self.clients

    def place(self, name: str) -> LabPlace:
        """Return the place of that name; the error for an unknown one lists the known ones."""
        for place in self.places:
            if place.name == name:
                return place
        known = ", ".join(place.name for place in self.places)
        raise NftproxyError(
            f"nothing in lab {self.shape.name!r} has the name {name!r}", hint=f"known: {known}"
        )


def make_plan(shape: Shape) -> LabPlan:
    """Return the names and addresses of a lab; raise an error if it is too large or badly named."""
    check_name(shape.name)
    for what, number, low, high in (
        ("nodes", shape.nodes, 1, 89),
        ("pods per node", shape.pods, 0, 97),
        ("clients", shape.clients, 0, 49),
    ):
        if not low <= number <= high:
            raise NftproxyError(f"a lab has {low} to {high} {what}, not {number}")
    if not shape.families:
        raise NftproxyError("a lab needs at least one IP family")
    return LabPlan(
        shape=shape,
        underlay=f"{shape.name}.underlay",
        nodes=tuple(_node(shape, number) for number in range(1, shape.nodes + 1)),
        clients=tuple(_client(shape, number) for number in range(1, shape.clients + 1)),
    )


def check_name(name: str) -> None:
    """Raise when `name` cannot be the name of a lab."""
    if not _NAME.fullmatch(name):
        raise NftproxyError(
            f"{name[:80]!r} cannot be the name of a lab",
            hint="up to 32 of a-z, 0-9 and -, not - at either end",
        )


def _node(shape: Shape, number: int) -> LabNode:
    name = f"node{number}"
    return LabNode(
        name=name,
        namespace=f"{shape.name}.{name}",
        number=number,
        addresses=_per_family(shape, f"192.168.50.{10 + number}", f"fd00:50::{10 + number}"),
        pod_cidrs=_per_family(shape, f"10.244.{number}.0/24", f"fd00:244:{number}::/64"),
        gateways=_per_family(shape, f"10.244.{number}.1", f"fd00:244:{number}::1"),
        pods=tuple(_pod(shape, number, pod) for pod in range(1, shape.pods + 1)),
    )


def _pod(shape: Shape, node: int, number: int) -> Pod:
    name = f"pod{node}-{number}"
    return Pod(
        name=name,
        namespace=f"{shape.name}.{name}",
        number=number,
        addresses=_per_family(
            shape, f"10.244.{node}.{1 + number}", f"fd00:244:{node}::{1 + number}"
        ),
        node=f"node{node}",
        veth=f"veth{number}",
    )


def _client(shape: Shape, number: int) -> LabClient:
    name = "client" if number == 1 else f"client{number}"
    return LabClient(
        name=name,
        namespace=f"{shape.name}.{name}",
        number=number,
        addresses=_per_family(shape, f"192.168.50.{200 + number}", f"fd00:50::{200 + number}"),
    )


def _per_family(shape: Shape, ipv4: str, ipv6: str) -> Mapping[Family, str]:
    return {family: ipv4 if family is Family.IPv4 else ipv6 for family in shape.families}
