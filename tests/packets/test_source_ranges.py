"""loadBalancerSourceRanges: who may use a load-balancer address (contract 2.7; Appendix B 2)."""

from collections.abc import Iterator, Sequence

import pytest
from loguru import logger
from msgspec import structs

from nftproxy.address import Family
from nftproxy.lab.client import Answer, Connection, Silent
from nftproxy.model import Annotations
from tests.support.frontends import (
    DROPPED,
    Web,
    Wire,
    add_address,
    becomes,
    each_wire,
    route_outside,
    rule_counters,
)
from tests.support.world import World

CLIENTS = {Family.IPv4: "192.168.50.201/32", Family.IPv6: "fd00:50::201/128"}
OTHERS = {Family.IPv4: "198.51.100.0/24", Family.IPv6: "2001:db8::/32"}
PODS = {Family.IPv4: "10.244.0.0/16", Family.IPv6: "fd00:244::/32"}
SOURCES = ("client", "client2", "pod1-1", "node1")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(lab={"clients": 2}) as world:
        route_outside(world)
        yield world


def allowed(world: World, web: Web, wire: Wire) -> set[str]:
    """Which places reach the load-balancer address.

    All others are dropped by the rule for that, and only they.
    """
    chain = f"allowed{wire.family.digit}"
    found = set()
    for where in SOURCES:
        (before,) = rule_counters(world, "node1", chain)
        outcome = world.connect(where, *web.at("vip", wire), timeout=DROPPED)
        if outcome == Silent() and becomes(
            lambda: rule_counters(world, "node1", chain), [before + 1]
        ) == [before + 1]:
            continue
        assert isinstance(outcome, Answer) or world.ask(where, *web.at("vip", wire))
        assert rule_counters(world, "node1", chain) == [before], where
        found.add(where)
    return found


@pytest.mark.contract("2.7.4", "2.7.5", "9.10")
@each_wire
def test_only_those_in_a_range(world: World, wire: Wire) -> None:
    """Not even pods and the node itself are exempt.

    The other kinds of addresses are open to everybody.
    """
    web = Web(world)
    web.apply("pod1-1", "pod2-1", loadBalancerSourceRanges=[*CLIENTS.values(), *OTHERS.values()])
    assert allowed(world, web, wire) == {"client"}
    for where in SOURCES:
        for kind in ("cluster", "external", "nodeport"):
            world.ask(where, *web.at(kind, wire))


RANGES: dict[str, tuple[Sequence[str], set[str]]] = {
    "none": ([], set(SOURCES)),
    "pods": ([*PODS.values()], {"pod1-1"}),
    "two lengths": ([*CLIENTS.values(), *PODS.values()], {"client", "pod1-1"}),
    "white space": ([" 192.168.50.201/32 ", "\tfd00:50::201/128\n"], {"client"}),
    "leading zeros": (["192.168.050.201/032", "fd00:0050::0201/128"], {"client"}),
    "host bits": (["192.168.50.201/29", "fd00:50::201/124"], {"client", "client2"}),
    "zero length": (["198.51.100.0/24", "0.0.0.0/0", "::/0", "2001:db8::/32"], set(SOURCES)),
    "zero length, host bits": (["1.2.3.4/0", "2001:db8::1/0"], set(SOURCES)),
    "all broken": (["nonsense", "300.1.1.1/8", "192.168.50.201", "fd00::/129"], set(SOURCES)),
    "some broken": (["nonsense", *CLIENTS.values()], {"client"}),
    "empty strings": (["", " ", *CLIENTS.values()], {"client"}),
    "only empty strings": (["", ""], set(SOURCES)),
    "twice": ([*CLIENTS.values(), *CLIENTS.values()], {"client"}),
    "one inside the other": (["192.168.50.201/32", "192.168.50.200/30", "fd00:50::201/128", "fd00:50::200/126"], {"client", "client2"}),
    "outer first": (["192.168.50.200/30", "192.168.50.201/32", "fd00:50::200/126", "fd00:50::201/128"], {"client", "client2"}),
    "odd length": (["192.168.50.200/31", "fd00:50::200/127"], {"client"}),
    "node": (["192.168.50.11/32", "fd00:50::11/128"], {"node1"}),
}  # fmt: skip


@pytest.mark.contract("2.7.1", "2.7.2", "2.7.3", "2.7.5", "2.7.7")
@each_wire
@pytest.mark.parametrize(("ranges", "sources"), RANGES.values(), ids=RANGES)
def test_ranges(world: World, wire: Wire, ranges: list[str], sources: set[str]) -> None:
    web = Web(world)
    web.apply("pod1-1", loadBalancerSourceRanges=ranges)
    assert allowed(world, web, wire) == sources


@pytest.mark.contract("2.7.3")
@each_wire
@pytest.mark.parametrize("family", list(Family))
def test_ranges_of_one_family_leave_the_other_open(
    world: World, wire: Wire, family: Family
) -> None:
    web = Web(world)
    web.apply("pod1-1", loadBalancerSourceRanges=[OTHERS[family]])
    assert allowed(world, web, wire) == (set() if wire.family is family else set(SOURCES))


@pytest.mark.contract("2.7.1")
def test_broken_ranges_are_logged_and_empty_ones_are_not(world: World) -> None:
    web = Web(world)
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    try:
        web.apply("pod1-1", loadBalancerSourceRanges=["", "10.0.0.0/33", " "])
    finally:
        logger.remove(sink)
    assert len([line for line in lines if web.name in line and "10.0.0.0/33" in line]) == 2 * 2, (
        "each node, each family"
    )
    assert len([line for line in lines if web.name in line]) == 4


@pytest.mark.contract("2.7.6")
@each_wire
@pytest.mark.parametrize("with_node", [True, False])
def test_an_allowed_node_may_come_from_its_own_load_balancer_address(
    world: World, wire: Wire, with_node: bool
) -> None:
    web = Web(world)
    node = (
        [f"{world.address('node1', family)}/{family.bits}" for family in Family]
        if with_node
        else []
    )
    web.apply("pod1-1", loadBalancerSourceRanges=[*OTHERS.values(), *node])
    address = web.address("vip", wire.family)
    add_address(world, "node1", address)
    chain = f"allowed{wire.family.digit}"
    (before,) = rule_counters(world, "node1", chain)
    outcome = world.connect(
        "node1", *web.at("vip", wire), source=address, timeout=1.0 if with_node else DROPPED
    )
    expected = [before + (not with_node)]
    assert becomes(lambda: rule_counters(world, "node1", chain), expected) == expected
    assert (outcome == Silent()) == (not with_node), outcome


@pytest.mark.contract("2.7.4", "2.9.1")
@each_wire
def test_established_connections_outlive_a_new_range(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod1-1")
    connection = world.lab.open_connection("client", *web.at("vip", wire))
    assert isinstance(connection, Connection)
    with connection:
        web.apply("pod1-1", loadBalancerSourceRanges=[*OTHERS.values()])
        assert allowed(world, web, wire) == set()
        assert connection.again() == connection.answer


@pytest.mark.contract("2.7.4", "2.7.9")
@each_wire
def test_ranges_that_change(world: World, wire: Wire) -> None:
    """From any to any other, also to none; a range that stays never loses anybody."""
    web = Web(world)
    steps = ["two lengths", "pods", "none", "odd length", "zero length", "node", "two lengths"]
    for step in steps:
        ranges, sources = RANGES[step]
        web.apply("pod1-1", loadBalancerSourceRanges=ranges)
        assert allowed(world, web, wire) == sources, step
    world.delete(web.service())
    v = wire.family.digit
    left = [
        key
        for name in _allowed_sets(world, v)
        for key in world.tables["node1"].kernel.elements(name)
    ]
    assert web.address("vip", wire.family) not in {key[0] for key in left}


@pytest.mark.contract("2.7.4")
@each_wire
def test_each_load_balancer_address_and_port_has_its_own(world: World, wire: Wire) -> None:
    """Two Services on one address with different ports and ranges."""
    one, two = Web(world), Web(world)
    two.port, two._addresses["vip"] = 8443, one._addresses["vip"]
    one.apply("pod1-1", loadBalancerSourceRanges=[*CLIENTS.values()])
    two.apply("pod1-2", loadBalancerSourceRanges=[*PODS.values()])
    assert allowed(world, one, wire) == {"client"}
    assert allowed(world, two, wire) == {"pod1-1"}


@pytest.mark.contract("2.2.3", "2.7.4")
@each_wire
def test_an_address_that_is_an_external_ip_as_well_keeps_its_ranges(
    world: World, wire: Wire
) -> None:
    web = Web(world)
    web._addresses["external"] = web._addresses["vip"]
    web.apply("pod1-1", loadBalancerSourceRanges=[*CLIENTS.values()])
    assert allowed(world, web, wire) == {"client"}


@pytest.mark.contract("2.7.8", "2.1.6")
def test_the_annotation_is_not_read() -> None:
    """Annotations are decoded into these fields, so nothing else can act."""
    kubernetes, *own = (field.encode_name for field in structs.fields(Annotations))
    assert kubernetes == "endpoints.kubernetes.io/last-change-trigger-time"
    assert own
    assert all(name.startswith("nftproxy.io/") for name in own)


def _allowed_sets(world: World, v: str) -> list[str]:
    return [name for name in world.tables["node1"].kernel.sets if name.startswith(f"allowed{v}-")]
