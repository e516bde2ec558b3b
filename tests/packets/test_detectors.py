"""How a packet of a local pod is told from others, and what follows from it (contract 4.1, 4.2)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from nftproxy.address import Family, parse_network
from nftproxy.configuration.settings import BridgeInterface, Cidr, InterfaceNamePrefix
from nftproxy.lab.plan import CLUSTER_CIDRS
from tests.support.frontends import Kind, Web, Wire, each_external, each_wire, masked, route_outside
from tests.support.world import CLUSTER, World

CLIENTS = {"no_masquerade": ["192.168.50.200/29", "fd00:50::200/120"]}
CLIENTS_AND_PODS = {"no_masquerade": [*CLIENTS["no_masquerade"], "10.244.1.0/24", "fd00:244::/32"]}
NODE = Cidr(
    {Family.IPv4: parse_network("10.244.1.0/24"), Family.IPv6: parse_network("fd00:244:1::/64")}
)
ONLY_IPV4 = Cidr({Family.IPv4: parse_network(CLUSTER_CIDRS[Family.IPv4])})


class Setup(NamedTuple):
    """A way to tell pods, and whom node1 then takes for a local pod, per family."""

    options: dict[str, Any]
    pods: dict[Family, set[str]]
    detects: frozenset[Family] = frozenset(Family)
    spared: frozenset[str] = frozenset()  # whom --no-masquerade-cidrs names


def both(*places: str) -> dict[Family, set[str]]:
    return {family: set(places) for family in Family}


SETUPS = {
    "ClusterCIDR": Setup({"detector": CLUSTER}, both("pod1-1", "pod2-1")),
    "NodeCIDR": Setup({"detector": NODE}, both("pod1-1")),
    "BridgeInterface": Setup({"detector": BridgeInterface("cni0")}, both("pod1-1")),
    "InterfaceNamePrefix": Setup(
        {"detector": InterfaceNamePrefix("veth"), "lab": {"wiring": "routed"}}, both("pod1-1")
    ),
    "whole name as a prefix": Setup({"detector": InterfaceNamePrefix("cni0")}, both("pod1-1")),
    "one family": Setup(
        {"detector": ONLY_IPV4},
        {Family.IPv4: {"pod1-1", "pod2-1"}, Family.IPv6: set()},
        frozenset({Family.IPv4}),
    ),
    "none": Setup({"detector": None}, both(), frozenset()),
    "masqueradeAll": Setup({"detector": CLUSTER, "masquerade_all": True}, both("pod1-1", "pod2-1")),
    "masqueradeAll, none": Setup({"detector": None, "masquerade_all": True}, both(), frozenset()),
    "ClusterCIDR, sparing": Setup(
        {"detector": CLUSTER, **CLIENTS}, both("pod1-1", "pod2-1"), spared=frozenset({"client"})
    ),
    "BridgeInterface, sparing": Setup(
        {"detector": BridgeInterface("cni0"), **CLIENTS},
        both("pod1-1"),
        spared=frozenset({"client"}),
    ),
    "none, sparing": Setup({"detector": None, **CLIENTS}, both(), frozenset()),
    "masqueradeAll, sparing": Setup(
        {"detector": CLUSTER, "masquerade_all": True, **CLIENTS_AND_PODS},
        both("pod1-1", "pod2-1"),
        spared=frozenset({"client", "pod1-1"}),
    ),
}


@pytest.fixture(scope="module", params=SETUPS)
def setup(request: pytest.FixtureRequest) -> Setup:
    return SETUPS[request.param]


@pytest.fixture(scope="module")
def world(setup: Setup) -> Iterator[World]:
    options = dict(setup.options)
    lab = {"pods": 2, **options.pop("lab", {})}
    with World(lab=lab, **options) as world:
        route_outside(world)
        yield world


def source_seen(world: World, where: str, answered_by: str, wire: Wire, *, masquerade: bool) -> str:
    return (
        masked(world, "node1", answered_by, wire.family)
        if masquerade
        else world.address(where, wire.family)
    )


@pytest.mark.contract("4.1.1", "4.1.2", "4.1.6", "4.1.7", "4.2.1", "4.2.2", "4.2.3", "4.2.5")
@each_wire
@pytest.mark.parametrize("spec", [{}, {"internalTrafficPolicy": "Local"}], ids=["cluster", "local"])
@pytest.mark.parametrize("where", ["pod1-1", "node1", "client"])
def test_cluster_ip(
    world: World, setup: Setup, wire: Wire, where: str, spec: dict[str, Any]
) -> None:
    """Who is no local pod is masqueraded, unless spared; iTP has no influence."""
    web = Web(world)
    web.apply("pod1-2", **spec)
    masquerade = where not in setup.spared and (
        setup.options.get("masquerade_all", False)
        or (wire.family in setup.detects and where not in setup.pods[wire.family])
    )
    answer = world.ask(where, *web.at("cluster", wire))
    assert answer.source == source_seen(world, where, "pod1-2", wire, masquerade=masquerade)


@pytest.mark.contract("4.1.5", "4.1.7")
@each_wire
def test_hairpin_needs_no_detector(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod1-1", internalTrafficPolicy="Local", externalTrafficPolicy="Local")
    for kind in ("cluster", "vip"):
        answer = world.ask("pod1-1", *web.at(kind, wire))
        assert answer.source == masked(world, "node1", "pod1-1", wire.family)


@pytest.mark.contract("4.1.3")
@each_wire
@each_external
@pytest.mark.parametrize("where", ["pod1-1", "node1", "client"])
def test_external_addresses_are_always_masqueraded(
    world: World, wire: Wire, kind: Kind, where: str
) -> None:
    web = Web(world)
    web.apply("pod1-2")
    assert world.ask(where, *web.at(kind, wire)).source == masked(
        world, "node1", "pod1-2", wire.family
    )


@pytest.mark.contract("2.3.7", "2.3.9", "4.1.4", "4.1.6", "4.1.7", "4.2.2")
@each_wire
@each_external
def test_external_policy_local(world: World, setup: Setup, wire: Wire, kind: Kind) -> None:
    """Local pods have the cluster list unmasqueraded, the node has it masqueraded, everybody else
    the local list.
    """
    far, near = Web(world), Web(world)
    far.apply("pod2-2", externalTrafficPolicy="Local")
    near.apply("pod1-2", "pod2-2", externalTrafficPolicy="Local")
    pods = setup.pods[wire.family]
    if "pod1-1" in pods:
        answer = world.ask("pod1-1", *far.at(kind, wire))
        assert (answer.name, answer.source) == ("pod2-2", world.address("pod1-1", wire.family))
    else:
        far.assert_dropped("pod1-1", kind, wire)
        assert near.answers("pod1-1", kind, wire) == {"pod1-2"}
        assert world.ask("pod1-1", *near.at(kind, wire)).source == world.address(
            "pod1-1", wire.family
        )
    answer = world.ask("node1", *far.at(kind, wire))
    assert (answer.name, answer.source) == ("pod2-2", masked(world, "node1", "pod2-2", wire.family))
    far.assert_dropped("client", kind, wire)
    answer = world.ask("client", *near.at(kind, wire))
    assert (answer.name, answer.source) == ("pod1-2", world.address("client", wire.family))


@pytest.mark.contract("2.3.9")
@each_wire
def test_a_pod_of_another_node(world: World, setup: Setup, wire: Wire) -> None:
    """At a NodePort of node1; with a CIDR of the whole cluster it is a pod like any other."""
    web = Web(world)
    web.apply("pod1-2", externalTrafficPolicy="Local")
    assert world.ask("pod2-1", *web.at("nodeport", wire)).source == world.address(
        "pod2-1", wire.family
    )
    # As if it were remote; it answers through node1
    web.apply("pod1-2", ("pod1-1", {"node": "node2"}), externalTrafficPolicy="Local")
    expected = {"pod1-1", "pod1-2"} if "pod2-1" in setup.pods[wire.family] else {"pod1-2"}
    assert web.answers("pod2-1", "nodeport", wire) == expected
