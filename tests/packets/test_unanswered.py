"""Connections that no endpoint answers, counted as `top --by unanswered` does."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from nftproxy.address import Family
from nftproxy.kernel.reader import Reader
from nftproxy.lab.client import Answer, Refused, Silent
from nftproxy.monitoring.unanswered import Unanswered, Waiting
from nftproxy.node.ctdump import unanswered
from nftproxy.selection import Endpoint
from tests.support.frontends import (
    KINDS,
    SILENCE,
    WIRES,
    Kind,
    Web,
    Wire,
    each_wire,
    foreign_rules,
    route_outside,
)
from tests.support.world import World

SILENT, TALKING = "pod2-1", "pod1-1"
DROPS = "chain shut { type filter hook input priority 0; th dport 8080 drop; }"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        route_outside(world)
        yield world


@pytest.fixture
def reading(world: World) -> Iterator[Unanswered]:
    """Readings on node1, the first of which is done."""
    with world.lab.enter("node1"), closing(Reader()) as reader:
        waiting = Unanswered(reader)
        waiting.read()
        yield waiting


def waits(reading: Unanswered, web: Web, wire: Wire) -> Waiting:
    """What two readings find of a service port."""
    reading.read()
    found = reading.read()
    return found.get(f"default/{web.name}:{wire.protocol.lower()}", Waiting())


@each_wire
@pytest.mark.parametrize("kind", KINDS)
def test_each_connection_without_an_answer_counts(
    world: World, reading: Unanswered, kind: Kind, wire: Wire
) -> None:
    web = Web(world)
    web.apply(SILENT, TALKING)
    there = Endpoint(world.address(SILENT, wire.family), 8080)
    with foreign_rules(world, SILENT, DROPS):
        outcomes = [
            world.connect(where, *web.at(kind, wire), timeout=SILENCE)
            for where in ("client", "pod1-2", "node1")
            for _ in range(4)
        ]
        lost = outcomes.count(Silent())
        assert sum(isinstance(one, Answer) for one in outcomes) == len(outcomes) - lost
        found = waits(reading, web, wire)
        assert found.endpoints == ({there: lost} if lost else {})
        assert {family for family, _ in found.frontends} <= {wire.family}


@each_wire
def test_an_answer_or_a_refusal_is_one(world: World, reading: Unanswered, wire: Wire) -> None:
    """Neither an endpoint that refuses nor a Service without one leaves a client waiting."""
    web = Web(world)
    web.apply(TALKING, port=9)
    assert world.connect("client", *web.at("cluster", wire)) == Refused()
    if wire.protocol == "TCP":  # of UDP, an ICMP message is no answer of the connection
        assert waits(reading, web, wire) == Waiting()
    none = Web(world)
    none.apply()
    assert world.connect("client", *none.at("cluster", wire)) == Refused()
    assert waits(reading, none, wire) == Waiting()


def test_a_first_look_says_nothing(world: World) -> None:
    """A connection that has begun this moment waits for no answer yet."""
    web = Web(world)
    web.apply(SILENT)
    wire = WIRES[1]
    with (
        world.lab.enter("node1"),
        closing(Reader()) as reader,
        foreign_rules(world, SILENT, DROPS),
    ):
        assert world.connect("client", *web.at("cluster", wire), timeout=SILENCE) == Silent()
        waiting = Unanswered(reader)
        name = f"default/{web.name}:udp"
        assert name not in waiting.read()
        assert waiting.read()[name].endpoints.total() == 1


def test_what_others_translate_is_not_ours(world: World, reading: Unanswered) -> None:
    there = world.address(SILENT, Family.IPv4)
    hostport = f"""
    chain hostport {{
        type nat hook prerouting priority -100
        udp dport 777 dnat ip to {there}:8080
    }}"""
    node = world.address("node1", Family.IPv4)
    before = reading.read()
    with foreign_rules(world, SILENT, DROPS), foreign_rules(world, "node1", hostport):
        assert world.connect("client", node, 777, "UDP", timeout=SILENCE) == Silent()
        assert [entry.asked.port for _, entry in unanswered({})].count(777) == 1
    reading.read()
    assert reading.read() == before
