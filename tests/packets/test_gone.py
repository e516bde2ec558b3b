"""--reset-gone-endpoints: clients of an endpoint that has left all slices are told at once.

The pods here live on and would answer: what a client gets comes from this node, not from them.
"""

import contextlib
import errno
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from nftproxy.address import Family, bracketed
from nftproxy.lab.client import Answer, Connection, Refused, Unreachable
from nftproxy.path.explanation import explain
from nftproxy.path.model import Reach
from nftproxy.path.node import LiveNode
from nftproxy.path.request import request
from nftproxy.sync import resets
from nftproxy.sync.table import Table
from nftproxy.table.delta import Delta
from nftproxy.table.program import Program
from tests.support.frontends import (
    Kind,
    Web,
    Wire,
    each_wire,
    listing,
    nft,
    route_outside,
    rule_counters,
)
from tests.support.objects import endpoint, endpoint_slice
from tests.support.world import World, settings

DRAINING = {"ready": False, "serving": True, "terminating": True}
RESET = {"TCP": Unreachable("ECONNRESET"), "UDP": Refused()}
CLIENTS: dict[str, tuple[str, Kind, dict[str, Any]]] = {
    "pod": ("pod1-3", "cluster", {}),
    "node": ("node1", "cluster", {}),
    "node, its NodePort": ("node1", "nodeport", {}),
    "outside, masqueraded": ("client", "nodeport", {}),
    "outside, load balancer": ("client", "vip", {}),
    "outside, policy Local": ("client", "nodeport", {"externalTrafficPolicy": "Local"}),
    "pod, policy Local": ("pod1-3", "cluster", {"internalTrafficPolicy": "Local"}),
    "the endpoint itself": ("pod1-1", "cluster", {}),
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(reset_gone=True) as world:
        route_outside(world)
        yield world


@pytest.fixture
def web(world: World) -> Iterator[Web]:
    web = Web(world)
    yield web
    web.delete()
    forget(world)


def apply(table: Table) -> None:
    """Do what follows a sync."""
    assert table.resets
    for family in Family:
        table.resets.synced(family)
    table.resets.apply()


def settle(world: World) -> None:
    """Let pass the moment after which what has left is gone, and write it."""
    time.sleep(resets.SETTLE)
    for table in world.tables.values():
        apply(table)


def forget(world: World) -> None:
    """Let pass the time after which the kernel forgets what is gone."""
    for name, table in world.tables.items():
        settle(world)
        for family in Family:
            nft(world, name, f"flush set inet nftproxy gone{family.digit}")
        assert table.resets
        table.resets._until = 0.0
        for side in table.resets._sides.values():
            side.gone.clear()
        assert table.tidy()


def hold(world: World, web: Web, where: str, kind: Kind, wire: Wire) -> Connection:
    """An open connection that works."""
    found = world.lab.open_connection(where, *web.at(kind, wire), timeout=5.0)
    assert isinstance(found, Connection), found
    assert isinstance(found.again(), Answer)
    return found


def hooks(world: World, node: str = "node1") -> set[str]:
    """The base chains of our table."""
    return {
        item["chain"]["name"]
        for item in listing(world, node, "table inet nftproxy")
        if "hook" in item.get("chain", {})
    }


# ---- who is told ---------------------------------------------------------------------------------


@each_wire
@pytest.mark.parametrize(("where", "kind", "spec"), CLIENTS.values(), ids=CLIENTS)
def test_the_next_packet_to_an_endpoint_that_is_gone_is_answered(
    world: World, web: Web, wire: Wire, where: str, kind: Kind, spec: dict[str, Any]
) -> None:
    """By a reset, or for UDP by port unreachable."""
    web.apply("pod1-1", **spec)
    with hold(world, web, where, kind, wire) as connection:
        world.delete(*web.slices())
        settle(world)
        chain = f"reset-gone{wire.family.digit}"
        before = rule_counters(world, "node1", chain)
        assert connection.again() == RESET[wire.protocol]
        after = rule_counters(world, "node1", chain)
        assert [b - a for a, b in zip(before, after, strict=True)] == [
            int(wire.protocol == "TCP"), int(wire.protocol == "UDP"), 0,
        ]  # fmt: skip


@each_wire
@pytest.mark.parametrize("where", ["pod1-3", "client", "node1"])
def test_no_route_to_the_endpoint_is_needed(world: World, web: Web, wire: Wire, where: str) -> None:
    """Some networks drop what goes to a pod that was on this node, before it is forwarded."""
    web.apply("pod1-1")
    address = web.world.address("pod1-1", wire.family)
    kind: Kind = "nodeport" if where == "client" else "cluster"
    route = f"blackhole {address}/{wire.family.bits}"
    with hold(world, web, where, kind, wire) as connection:
        world.lab.ip("node1", f"route add {route}")
        try:
            world.delete(*web.slices())
            settle(world)
            assert connection.again() == RESET[wire.protocol]
        finally:
            world.lab.ip("node1", f"route del {route}")


@each_wire
def test_a_connection_that_does_not_go_through_a_service_is_left_alone(
    world: World, web: Web, wire: Wire
) -> None:
    web.apply("pod1-1")
    direct = (world.address("pod1-1", wire.family), 8080, wire.protocol)
    found = world.lab.open_connection("pod1-3", *direct, timeout=5.0)
    assert isinstance(found, Connection)
    with found:
        world.delete(*web.slices())
        settle(world)
        assert isinstance(found.again(), Answer)


@each_wire
def test_connections_to_the_other_endpoints_go_on(world: World, web: Web, wire: Wire) -> None:
    web.apply("pod1-1", "pod2-1")
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(hold(world, web, "pod1-3", "cluster", wire)) for _ in range(24)]
        web.apply("pod2-1")
        settle(world)
        for connection in held:
            gone = connection.answer.name == "pod1-1"
            assert connection.again() == (RESET[wire.protocol] if gone else connection.answer)
        assert {connection.answer.name for connection in held} == {"pod1-1", "pod2-1"}


def test_a_connection_that_waits_for_an_endpoint_that_is_gone_is_refused(
    world: World, web: Web
) -> None:
    """Its second SYN is answered: it has an endpoint already, which never answered the first."""
    members = [endpoint("10.244.2.250", "node2")]
    piece = endpoint_slice(web.name, members, port_name="tcp")
    world.apply(web.service(), piece)
    with world.lab.enter("pod1-3"), socket.socket() as client:
        client.settimeout(0)
        client.connect_ex(web.at("cluster", Wire(Family.IPv4, "TCP"))[:2])
        before = rule_counters(world, "node1", "reset-gone4")[0]
        world.delete(piece)
        settle(world)
        waiting = select.poll()
        waiting.register(client, select.POLLOUT)
        assert waiting.poll(60_000)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    assert rule_counters(world, "node1", "reset-gone4")[0] == before + 1


# ---- who is not gone -----------------------------------------------------------------------------


@each_wire
def test_a_draining_pod_is_never_reset(world: World, web: Web, wire: Wire) -> None:
    web.apply("pod1-1", "pod2-1")
    with hold(world, web, "pod1-3", "cluster", wire) as connection:
        web.apply(("pod1-1", DRAINING), ("pod2-1", DRAINING))
        settle(world)
        assert connection.again() == connection.answer
        assert "gone-prerouting" not in hooks(world)
        world.delete(*web.slices())
        settle(world)
        assert connection.again() == RESET[wire.protocol]


@each_wire
@pytest.mark.parametrize("port", [8080, 9376], ids=["same port", "another port of the same pod"])
def test_a_pod_that_another_service_lists_is_not_gone(
    world: World, web: Web, wire: Wire, port: int
) -> None:
    other = Web(world)
    pod = ("pod1-1", {"pod": "uid-1"})
    web.apply(pod)
    other.apply(pod, port=port)
    with hold(world, web, "pod1-3", "cluster", wire) as connection:
        world.delete(*web.slices())
        settle(world)
        assert connection.again() == connection.answer
        other.delete()
        settle(world)
        assert connection.again() == RESET[wire.protocol]


@each_wire
def test_an_endpoint_that_comes_back_at_once_never_left(
    world: World, web: Web, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a controller moves it to another slice in two requests."""
    web.apply("pod1-1")
    with hold(world, web, "pod1-3", "cluster", wire) as connection:
        with monkeypatch.context() as slowly:
            slowly.setattr(resets, "SETTLE", 60.0)
            world.delete(*web.slices())
            for table in world.tables.values():
                apply(table)
            assert connection.again() == connection.answer
            world.apply(*web.slices("pod1-1", suffix="-new"))
        for table in world.tables.values():
            assert table.resets
            assert table.resets.due is None
        assert connection.again() == connection.answer
        assert "gone-prerouting" not in hooks(world)
        world.delete(*web.slices(suffix="-new"))


@each_wire
def test_an_address_that_is_used_again_is_not_reset(world: World, web: Web, wire: Wire) -> None:
    """Its element is removed before the first connection can come."""
    web.apply("pod1-1")
    with hold(world, web, "pod1-3", "cluster", wire) as before:
        world.delete(*web.slices())
        settle(world)
        again = Web(world)
        try:
            again.apply("pod1-1")
            for where, kind in (("pod1-3", "cluster"), ("client", "nodeport"), ("node1", "vip")):
                with hold(world, again, where, kind, wire) as connection:  # type: ignore[arg-type]
                    assert connection.again() == connection.answer
            assert before.again() == before.answer, "who has the address now answers for itself"
            assert not any(world.tables["node1"].kernel.keys(f"gone{f.digit}") for f in Family)
        finally:
            again.delete()


def test_no_connection_to_an_address_that_comes_and_goes_is_reset_while_it_is_there(
    world: World, web: Web
) -> None:
    """Clients connect without pause to two endpoints, one of which is gone again and again."""
    wire = Wire(Family.IPv4, "TCP")
    web.apply("pod1-1", "pod2-1")
    stop, problems, count = threading.Event(), [], [0]

    def connect() -> None:
        while not stop.is_set():
            outcome = world.connect("pod1-3", *web.at("cluster", wire), timeout=5.0)
            count[0] += 1
            # A connection to the endpoint as it leaves may meet its reset, but none a refusal
            if not isinstance(outcome, Answer) and outcome != RESET["TCP"]:
                problems.append(outcome)

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        for _ in range(30):
            web.apply("pod2-1")
            settle(world)
            web.apply("pod1-1", "pod2-1")
            with hold(world, web, "pod1-2", "cluster", wire) as connection:
                assert connection.again() == connection.answer
    finally:
        stop.set()
        thread.join()
    assert not problems
    assert count[0] > 30


# ---- only while something is gone ----------------------------------------------------------------


def test_in_quiet_times_no_chain_is_there(world: World, web: Web) -> None:
    web.apply("pod1-1")
    settle(world)
    quiet = hooks(world)
    assert not {name for name in quiet if name.startswith("gone")}
    assert world.tables["node1"].resets
    world.delete(*web.slices())
    assert hooks(world) == quiet, "not before it has stayed away for a moment"
    settle(world)
    assert hooks(world) == quiet | {"gone-prerouting", "gone-output"}
    table = world.tables["node1"]
    assert table.tidy()
    assert hooks(world) != quiet, "while something is gone, tidying leaves them"
    forget(world)
    assert hooks(world) == quiet
    assert not table.untidy


def test_explain_finds_nothing_wrong_while_something_is_gone(world: World, web: Web) -> None:
    other = Web(world)
    other.apply("pod1-1")
    web.apply("pod2-1")
    other.delete()
    settle(world)
    assert "gone-prerouting" in hooks(world)
    wire = Wire(Family.IPv4, "TCP")
    with world.lab.enter("node1"), LiveNode("node1") as live:
        for client in ("node", world.address("pod1-3"), world.address("client")):
            path = explain(request(f"default/{web.name}:tcp", client, ""), live, None)
            assert (path.reach, path.causes) == (Reach.YES, ())
    assert web.answers("pod1-3", "cluster", wire, times=3) == {"pod2-1"}


@each_wire
def test_explain_says_whose_open_connection_is_reset(world: World, web: Web, wire: Wire) -> None:
    web.apply("pod1-1")
    with hold(world, web, "pod1-3", "cluster", wire) as connection:
        web.apply("pod2-1")
        said = []
        for settled in (False, True):
            if settled:
                settle(world)
            with world.lab.enter("node1"), LiveNode("node1") as live:
                client = world.address("pod1-3", wire.family)
                address, port, protocol = web.at("cluster", wire)
                target = f"{bracketed(address)}:{port}/{protocol.lower()}"
                path = explain(request(target, client, ""), live, None)
            if settled or wire.protocol == "TCP":
                assert path.reach is Reach.YES
            said.append([cause for cause in path.causes if cause.code == "gone-endpoint"])
        before, (cause,) = said
        assert not before
        assert client in cause.text
        assert world.address("pod1-1", wire.family) in cause.text
        assert connection.again(5.0) == RESET[wire.protocol]
        with world.lab.enter("node1"), LiveNode("node1") as live:
            other = world.address("pod1-1", wire.family)
            path = explain(request(target, other, ""), live, None)
            assert "gone-endpoint" not in [each.code for each in path.causes]


@each_wire
def test_a_restart_knows_what_is_gone(world: World, web: Web, wire: Wire) -> None:
    web.apply("pod1-1")
    with hold(world, web, "pod1-3", "cluster", wire) as connection:
        world.delete(*web.slices())
        settle(world)
        world.start("node1").store.put(web.service())
        world.sync()
        settle(world)
        assert connection.again() == RESET[wire.protocol]
        assert len(world.tables["node1"].kernel.keys(f"gone{wire.family.digit}")) == 2


@each_wire
def test_what_leaves_during_a_restart_is_gone(world: World, web: Web, wire: Wire) -> None:
    web.apply("pod1-1", "pod2-1")
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(hold(world, web, "pod1-3", "cluster", wire)) for _ in range(12)]
        table = world.start("node1")
        table.store.put(web.service())
        for piece in web.slices("pod2-1"):
            table.store.put(piece)
        world.sync()
        settle(world)
        for connection in held:
            gone = connection.answer.name == "pod1-1"
            assert connection.again() == (RESET[wire.protocol] if gone else connection.answer)


@each_wire
def test_what_comes_back_during_a_restart_is_not_gone(world: World, web: Web, wire: Wire) -> None:
    web.apply("pod1-1")
    world.delete(*web.slices())
    settle(world)
    table = world.start("node1")
    table.store.put(web.service())
    for piece in web.slices("pod1-1"):
        table.store.put(piece)
    world.sync()
    with hold(world, web, "pod1-3", "cluster", wire) as connection:
        assert connection.again() == connection.answer
    assert not table.kernel.keys(f"gone{wire.family.digit}")


@each_wire
def test_a_program_that_is_loaded_again_keeps_what_is_gone(
    world: World, web: Web, wire: Wire
) -> None:
    web.apply("pod1-1")
    with hold(world, web, "pod1-3", "cluster", wire) as connection:
        world.delete(*web.slices())
        settle(world)
        world.tables["node1"].distrust(program=True)
        world.sync()
        settle(world)
        assert connection.again() == RESET[wire.protocol]


def test_switched_off_nothing_of_it_stays(world: World, web: Web) -> None:
    wire = Wire(Family.IPv4, "TCP")
    web.apply("pod1-1")
    with hold(world, web, "pod1-3", "cluster", wire) as connection:
        world.delete(*web.slices())
        settle(world)
        try:
            table = world.start("node1", reset_gone=False)
            table.store.put(web.service())
            world.sync()
            assert table.tidy()
            text = str(listing(world, "node1", "table inet nftproxy"))
            assert "gone" not in text
            assert connection.again() == connection.answer
            assert table.resets is None
        finally:
            world.start("node1")
            world.sync()


def test_without_the_flag_the_program_has_nothing_of_it() -> None:
    plain, asked = Program(settings()), Program(settings(reset_gone=True))
    assert "gone" not in plain.text()
    assert plain.resets() == {}
    assert plain.digest != asked.digest
    added = asked.names() - plain.names() - {asked.marker}
    assert added == {"gone4", "gone6", "reset-gone4", "reset-gone6"}


# ---- bounded -------------------------------------------------------------------------------------


def test_ten_thousand_endpoints_that_vanish_are_one_transaction(
    world: World, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [
        endpoint_slice(
            web.name,
            [endpoint(f"10.200.{number}.{host}", "node2") for host in range(100)],
            name=f"{web.name}-{number}",
            port_name="tcp",
        )
        for number in range(100)
    ]
    world.apply(web.service(), *pieces)
    world.delete(*pieces)
    table = world.tables["node1"]
    time.sleep(resets.SETTLE)
    commits = []
    commit = table.kernel.commit

    def counted(delta: Delta) -> int:
        commits.append(len(delta))
        return commit(delta)

    monkeypatch.setattr(table.kernel, "commit", counted)
    apply(table)
    assert commits == [10_000]
    assert len(table.kernel.keys("gone4")) == 10_000
    world.delete(web.service())


def test_no_more_than_a_limit_are_remembered(
    world: World, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resets, "LIMIT", 3)
    members = [endpoint(f"10.200.0.{host}", "node2") for host in range(1, 11)]
    piece = endpoint_slice(web.name, members, port_name="tcp")
    world.apply(web.service(), piece)
    world.apply(structs.replace(piece, endpoints=()))
    settle(world)
    assert len(world.tables["node1"].kernel.keys("gone4")) == 3
    world.delete(piece)
