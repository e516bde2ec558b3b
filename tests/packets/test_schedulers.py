"""Schedulers with packets: who gets which endpoint, on which node, and what a restart changes."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from nftproxy.address import Family, parse_address
from nftproxy.annotations import FULL
from nftproxy.lab.client import Answer, Connection
from nftproxy.model import Object
from nftproxy.selection import Endpoint
from nftproxy.table import maglev
from nftproxy.table.jhash import slot
from tests.packets.test_fairness import TOO_RARE, chance
from tests.support.frontends import (
    WIRES,
    Kind,
    Web,
    Wire,
    add_address,
    each_kind,
    each_wire,
    route_outside,
)
from tests.support.objects import annotated
from tests.support.world import World

PODS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2", "pod3-1")
BY_ADDRESS = ("source-hash", "maglev")
CLIENTS = {
    Family.IPv4: [f"192.168.99.{n}" for n in range(1, 31)],
    Family.IPv6: [f"fd00:99::{n:x}" for n in range(1, 31)],
}
MANY = {Family.IPv4: "192.168.99.0/24", Family.IPv6: "fd00:99::/64"}
CROWD = ip_network("192.168.104.0/21")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(lab={"nodes": 3}) as world:
        route_outside(world)
        for family, cidr in MANY.items():
            for address in CLIENTS[family]:
                add_address(world, "client", address)
            for node in ("node1", "node2", "node3"):
                world.lab.route(node, cidr, "client")
        world.lab.ip("client", f"route add local {CROWD} dev lo")
        world.lab.route("node1", str(CROWD), "client")
        yield world


@pytest.fixture
def web(world: World, wire: Wire) -> Iterator[Web]:
    """A Service of one family and protocol: a table has 2 048 slots for each of four frontends."""
    web = Web(world, wire)
    yield web
    web.delete()


@pytest.fixture
def wire() -> Wire:
    """What the tests use that need no more than one."""
    return WIRES[0]


def put(web: Web, scheduler: str | None, *more: Object, **spec: Any) -> None:
    web.world.apply(annotated(web.service(**spec), scheduler=scheduler), *more)


def table(web: Web, scheduler: str, wire: Wire, *places: str) -> tuple[Endpoint, ...]:
    """The slots that these endpoints have, computed as the contract of the annotation says."""
    ends = [Endpoint(web.world.address(each, wire.family), 8080) for each in places]
    if scheduler == "maglev":
        return maglev.table(dict.fromkeys(ends, FULL))
    return tuple(sorted(ends))


def answerers(
    world: World, web: Web, kind: Kind, wire: Wire, node: str = "node1"
) -> dict[str, Answer]:
    """Who answers each client address."""
    return {
        source: world.ask("client", *web.at(kind, wire, node), source=source)
        for source in CLIENTS[wire.family]
    }


@pytest.mark.parametrize("scheduler", BY_ADDRESS)
@each_kind
@each_wire
def test_a_client_gets_the_endpoint_of_its_slot(
    world: World, web: Web, wire: Wire, kind: Kind, scheduler: str
) -> None:
    """The kernel's hash is the one that `explain` computes."""
    put(web, scheduler, *web.slices(*PODS))
    slots = table(web, scheduler, wire, *PODS)
    found = {
        source: world.ask("client", *web.at(kind, wire), source=source).address
        for source in CLIENTS[wire.family][:12]
    }
    assert found == {source: slots[slot(source, len(slots))].address for source in found}
    assert len(set(found.values())) > 2


@pytest.mark.parametrize("scheduler", BY_ADDRESS)
@pytest.mark.parametrize("wire", [WIRES[0], WIRES[3]], ids=str)
def test_three_nodes_agree_whatever_they_have_seen(
    world: World, web: Web, wire: Wire, scheduler: str
) -> None:
    """Each node got there on another way: from random, by removals, or at once."""
    whole = web.slices(*PODS)
    ways: dict[str, list[list[Object]]] = {
        "node1": [[web.service(), *web.slices(*reversed(PODS))]],
        "node2": [
            [annotated(web.service(), scheduler=scheduler), *web.slices(*PODS, "pod3-2")],
            [*web.slices("pod3-1", "pod1-2")],
        ],
        "node3": [],
    }
    last: list[Object] = [annotated(web.service(), scheduler=scheduler), *whole]
    for node, states in ways.items():
        own = [parse_address(world.address(node, wire.family))]
        for state in [*states, last]:
            for item in state:
                world.tables[node].store.put(item)
            world.tables[node].sync(wire.family, own)
    world.sync()
    found = [
        {source: answer.address for source, answer in each.items()}
        for node in ways
        for each in [answerers(world, web, "nodeport", wire, node)]
    ]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].values())) > 2


@pytest.mark.parametrize("scheduler", BY_ADDRESS)
def test_a_restart_writes_nothing(world: World, web: Web, wire: Wire, scheduler: str) -> None:
    objects: list[Object] = [
        annotated(web.service(), scheduler=scheduler),
        *(annotated(piece, weight="30") for piece in web.slices(*PODS[:2])),
        *web.slices(*PODS[2:], suffix="-b"),
    ]
    world.apply(*objects)
    before = answerers(world, web, "vip", wire)
    table = world.start("node1")
    for item in objects:
        table.store.put(item)
    for family in Family:
        report = table.sync(family, [parse_address(world.address("node1", family))])
        assert report.read_back
        assert report.written == 0
    after = answerers(world, web, "vip", wire)
    assert {s: a.address for s, a in before.items()} == {s: a.address for s, a in after.items()}
    world.delete(*objects)


def test_with_maglev_only_the_clients_of_a_removed_endpoint_move(
    world: World, web: Web, wire: Wire
) -> None:
    put(web, "maglev", *web.slices(*PODS))
    before = answerers(world, web, "cluster", wire)
    world.apply(*web.slices(*PODS[1:]))
    after = answerers(world, web, "cluster", wire)
    stayed = [source for source in before if before[source].name != PODS[0]]
    moved = [source for source in stayed if before[source].name != after[source].name]
    assert len(stayed) > 15
    assert len(moved) <= 1, moved
    assert PODS[0] not in {answer.name for answer in after.values()}


@pytest.mark.parametrize("scheduler", BY_ADDRESS)
@pytest.mark.parametrize("kind", ["cluster", "vip", "nodeport"])
def test_policy_local_chooses_among_those_here(
    world: World, web: Web, wire: Wire, kind: Kind, scheduler: str
) -> None:
    """And keeps the client's address, also for the endpoint."""
    local = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}
    put(web, scheduler, *web.slices(*PODS), **local)
    slots = table(web, scheduler, wire, "pod1-1", "pod1-2")
    found = answerers(world, web, kind, wire)
    for source, answer in found.items():
        assert answer.address == slots[slot(source, len(slots))].address
        assert answer.source == source or kind == "cluster", "only a ClusterIP masquerades it"
    assert {answer.name for answer in found.values()} == {"pod1-1", "pod1-2"}


@pytest.mark.parametrize("scheduler", BY_ADDRESS)
def test_affinity_comes_first(world: World, web: Web, wire: Wire, scheduler: str) -> None:
    """A client who is remembered stays; one who is not gets the endpoint of its slot."""
    clients = CLIENTS[wire.family]
    put(web, scheduler, *web.slices(*PODS[:3]), sessionAffinity="ClientIP")
    known = {
        source: world.ask("client", *web.at("vip", wire), source=source).address
        for source in clients[:15]
    }
    slots = table(web, scheduler, wire, *PODS[:3])
    assert known == {source: slots[slot(source, len(slots))].address for source in known}
    world.apply(*web.slices(*PODS))
    found = {source: a.address for source, a in answerers(world, web, "vip", wire).items()}
    assert {source: found[source] for source in known} == known
    slots = table(web, scheduler, wire, *PODS)
    assert {source: found[source] for source in clients[15:]} == {
        source: slots[slot(source, len(slots))].address for source in clients[15:]
    }
    assert known != {source: slots[slot(source, len(slots))].address for source in known}


@pytest.mark.parametrize("scheduler", [None, *BY_ADDRESS])
@pytest.mark.parametrize("kind", ["cluster", "nodeport"])
def test_weights_are_shares_of_new_connections(
    world: World, web: Web, wire: Wire, kind: Kind, scheduler: str | None
) -> None:
    """Three endpoints of weights 100, 50 and 10: sixteen parts, by chi-squared.

    Each connection is another client's, so that a scheduler by address has as many to place.
    """
    pieces = [
        *web.slices("pod1-1"),
        *(annotated(piece, weight="50") for piece in web.slices("pod2-1", suffix="-b")),
        *(annotated(piece, weight="10") for piece in web.slices("pod3-1", suffix="-c")),
    ]
    put(web, scheduler, *pieces)
    counts: Counter[str] = Counter()
    for source in itertools.islice(CROWD.hosts(), 1600):
        counts[world.ask("client", *web.at(kind, wire), source=str(source)).name] += 1
    expected = {"pod1-1": 1000.0, "pod2-1": 500.0, "pod3-1": 100.0}
    assert set(counts) == set(expected)
    statistic = sum((counts[name] - number) ** 2 / number for name, number in expected.items())
    assert chance_of(statistic) > TOO_RARE, counts
    assert chance(counts, 3) < TOO_RARE, "they are not equal shares"
    world.delete(web.service(), *pieces)


def chance_of(statistic: float) -> float:
    """The tail of chi-squared with two degrees of freedom."""
    return math.exp(-statistic / 2)


@pytest.mark.parametrize("scheduler", [None, *BY_ADDRESS])
def test_weight_zero_gets_no_connection_and_keeps_those_it_has(
    world: World, web: Web, wire: Wire, scheduler: str | None
) -> None:
    first, other = web.slices("pod1-1"), web.slices("pod2-1", suffix="-b")
    put(web, scheduler, *first)
    connection = world.lab.open_connection("client", *web.at("cluster", wire), timeout=5.0)
    assert isinstance(connection, Connection)
    with connection:
        assert connection.answer.name == "pod1-1"
        world.apply(*(annotated(piece, weight="0") for piece in first), *other)
        assert {a.name for a in answerers(world, web, "cluster", wire).values()} == {"pod2-1"}
        assert connection.again(5.0) == connection.answer
    world.apply(*(annotated(piece, weight="0") for piece in other))
    web.assert_refused("client", "cluster", wire)
    world.delete(web.service(), *first, *other)


@pytest.mark.parametrize("value", ["Maglev", "", "; flush ruleset"])
def test_an_unknown_scheduler_serves_at_random(web: Web, wire: Wire, value: str) -> None:
    put(web, value, *web.slices("pod1-1", "pod2-1"))
    assert web.answers("client", "cluster", wire) == {"pod1-1", "pod2-1"}
