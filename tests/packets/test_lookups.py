"""A packet makes several look-ups, and may fall between two transactions.

It must find its way all the same (contract 5.7.2).

Each test sends hundreds of thousands of first packets to one frontend while what it looks up
changes a thousand times and more. Behind our table the node counts what came out and drops it, so
that no connection is ever kept and each packet is a first one.
"""

import contextlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nftproxy.address import Family, parse_address
from nftproxy.model import Object
from tests.support.frontends import (
    WIRES,
    Kind,
    Web,
    Wire,
    each_wire,
    foreign_counter,
    foreign_rules,
    nft,
    rule_counters,
)
from tests.support.objects import annotated
from tests.support.paths import ROOT
from tests.support.world import SLOW, World

PACKETS = 200_000
TRANSACTIONS = 1000
PARTS = 50_000  # packets where each state is several transactions more, which nobody counts
FEW = 60  # transactions, each of which rewrites hundreds of slots or all
PATIENCE = 60 * SLOW  # seconds, on a machine that has much else to do
OLD_KERNEL = tuple(map(int, platform.release().split(".")[:2])) < (6, 12)
# Of all packets: a rewritten element is missed where a processor stops in the midst of a look-up
MISSED = 1e-5 if OLD_KERNEL else 0.0
HERE = ("pod1-1", "pod1-2")


@contextlib.contextmanager
def flood(world: World, where: str, address: str, port: int, protocol: str) -> Iterator[None]:
    argv = [sys.executable, "-m", "tests.support.flood", address, str(port), protocol]
    process = world.lab.popen(where, argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin
        assert process.stdout
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert int(process.stdout.readline()) > 0
        finally:
            process.kill()


def survive(
    world: World,
    web: Web,
    wire: Wire,
    kind: Kind,
    states: list[list[Object]],
    where: str = "client",
    enough: int = PACKETS,
    least: int = TRANSACTIONS,
    *,
    tidy: bool = False,
) -> tuple[int, int, int]:
    """Flood a frontend while its Service goes through `states` again and again.

    With `tidy` each state is followed by a quiet time. Return how many packets came out
    untranslated and translated, and how many transactions it took.
    """
    address, port, protocol = web.at(kind, wire)
    ip = "ip6" if wire.family is Family.IPv6 else "ip"
    rules = f"""
    counter untranslated {{ }}
    counter translated {{ }}
    chain behind {{
        type filter hook prerouting priority -90
        {ip} daddr {address} {protocol.lower()} dport {port} counter name untranslated drop
        {protocol.lower()} dport 8080 counter name translated drop
    }}"""
    table, own = world.tables["node1"], [parse_address(world.address("node1", wire.family))]
    transactions = 0
    with foreign_rules(world, "node1", rules), flood(world, where, address, port, protocol):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for state in states:
                for item in state:
                    table.store.put(item)
                report = table.sync(wire.family, own)
                assert not report.refused
                assert not report.read_back
                transactions += report.transactions
                if tidy:
                    table.tidy()
            came = ("untranslated", "translated")
            if (
                transactions * PACKETS > least * enough
                and sum(foreign_counter(world, "node1", name) for name in came) > enough
            ):
                break
        return (
            foreign_counter(world, "node1", "untranslated"),
            foreign_counter(world, "node1", "translated"),
            transactions,
        )


def assert_none_lost(
    untranslated: int, translated: int, transactions: int, least: int = TRANSACTIONS
) -> None:
    assert untranslated <= translated * MISSED, f"of {translated} in {transactions} transactions"
    assert translated > PACKETS, "too few packets to say anything"
    assert transactions > least, "too few transactions to say anything"


@pytest.mark.contract("5.7.2", "3.4.9")
@pytest.mark.parametrize(("wire", "kind"), [(WIRES[1], "cluster"), (WIRES[2], "nodeport")], ids=str)
def test_scaling_between_two_and_three(world: World, wire: Wire, kind: Kind) -> None:
    web = Web(world, wire)
    two, three = web.slices("pod1-1", "pod2-1"), web.slices("pod1-1", "pod2-1", "pod2-2")
    world.apply(web.service(), *three)
    assert_none_lost(*survive(world, web, wire, kind, [[*two], [*three]]))


@pytest.mark.contract("5.7.2", "2.3.6", "2.3.7")
@pytest.mark.parametrize(("wire", "kind"), [(WIRES[3], "vip"), (WIRES[0], "nodeport")], ids=str)
def test_a_policy_that_flips(world: World, wire: Wire, kind: Kind) -> None:
    """The whole local list comes and goes with the verdict that points to it."""
    web = Web(world, wire)
    web.apply(*HERE, "pod2-1")
    states: list[list[Object]] = [
        [web.service(externalTrafficPolicy=policy)] for policy in ("Local", "Cluster")
    ]
    assert_none_lost(*survive(world, web, wire, kind, states))


@pytest.mark.contract("5.7.2", "2.3.5")
@pytest.mark.parametrize("wire", [WIRES[1]], ids=str)
def test_an_internal_policy_that_flips(world: World, wire: Wire) -> None:
    web = Web(world, wire)
    bare: dict[str, Any] = {
        "ports": [{"name": "udp", "protocol": "UDP", "port": 80}],
        "vips": [],
        "externalIPs": [],
    }
    web.apply(*HERE, "pod2-1", **bare)
    states: list[list[Object]] = [
        [web.service(internalTrafficPolicy=policy, **bare)] for policy in ("Local", "Cluster")
    ]
    assert_none_lost(*survive(world, web, wire, "cluster", states, where="pod1-3"))


@pytest.mark.contract("5.7.2", "2.7.4")
@pytest.mark.parametrize("wire", [WIRES[1], WIRES[2]], ids=str)
def test_source_ranges_that_change(world: World, wire: Wire) -> None:
    """The client is allowed all the time, but each time by another range, of another length or of
    the same.
    """
    web = Web(world, wire)
    client = world.address("client", wire.family)
    lengths = (32, 24, 25) if wire.family is Family.IPv4 else (128, 64, 120)
    other = "192.168.50.128/25" if wire.family is Family.IPv4 else "fd00:50::200/120"
    ranges = [
        [f"{client}/{lengths[0]}"],
        [f"{client}/{lengths[1]}", "198.51.100.0/24"],
        [other, "2001:db8::/32"],
        [],
    ]
    assert lengths[2] == int(other.split("/")[1])
    web.apply("pod1-1", "pod2-1")
    (before,) = rule_counters(world, "node1", f"allowed{wire.family.digit}")
    states: list[list[Object]] = [[web.service(loadBalancerSourceRanges=each)] for each in ranges]
    assert_none_lost(*survive(world, web, wire, "vip", states))
    assert rule_counters(world, "node1", f"allowed{wire.family.digit}") == [before], (
        "dropped in between"
    )


@pytest.mark.contract("5.7.2")
@pytest.mark.parametrize("wire", [WIRES[1], WIRES[2]], ids=str)
def test_parts_of_the_program_that_come_and_go(world: World, wire: Wire) -> None:
    """Another Service needs them at times; this one never does."""
    web, other = Web(world, wire), Web(world, wire)
    web.apply("pod1-1", "pod2-1")
    other.apply("pod1-1")
    states: list[list[Object]] = [
        [other.service(loadBalancerSourceRanges=["198.51.100.0/24", "2001:db8::/32"])],
        [other.service(sessionAffinity="ClientIP")],
        [other.service()],
    ]
    untranslated, translated, transactions = survive(
        world, web, wire, "vip", states, enough=PARTS, tidy=True
    )
    assert untranslated <= translated * MISSED, f"of {translated} in {transactions} transactions"
    assert translated > PARTS, "too few packets to say anything"
    assert transactions * PACKETS > TRANSACTIONS * PARTS, "too few transactions to say anything"
    other.delete()
    web.delete()


@pytest.mark.contract("5.7.2", "2.7.4")
@pytest.mark.parametrize("wire", [WIRES[1], WIRES[2]], ids=str)
def test_an_address_is_never_there_without_its_source_ranges(world: World, wire: Wire) -> None:
    """The client is in none of them, and the part of the program that asks comes with each.

    Ranges are written before the address: no packet is between the two hooks when both come.
    """
    web = Web(world, wire)
    web.apply("pod1-1", vips=[])
    ranges = ["198.51.100.0/24", "2001:db8::/32"]
    states: list[list[Object]] = [
        [web.service(loadBalancerSourceRanges=ranges)],
        [web.service(vips=[])],
    ]
    untranslated, translated, transactions = survive(
        world, web, wire, "vip", states, enough=PARTS, tidy=True
    )
    assert translated == 0, f"of {untranslated} in {transactions} transactions"
    assert untranslated > PARTS, "too few packets to say anything"
    assert transactions * PACKETS > TRANSACTIONS * PARTS, "too few transactions to say anything"
    web.delete()


def bare(wire: Wire) -> dict[str, Any]:
    """What keeps a Service to its ClusterIP and one port: a table then has 2 048 slots in all."""
    name = wire.protocol.lower()
    ports = [{"name": name, "protocol": wire.protocol, "port": 80}]
    return {"ports": ports, "vips": [], "externalIPs": []}


@pytest.mark.parametrize("wire", [WIRES[1], WIRES[2]], ids=str)
@pytest.mark.parametrize("kind", ["cluster", "nodeport"])
def test_scaling_by_the_source_hash(world: World, wire: Wire, kind: Kind) -> None:
    web = Web(world, wire)
    two, three = web.slices("pod1-1", "pod2-1"), web.slices("pod1-1", "pod2-1", "pod2-2")
    world.apply(annotated(web.service(), scheduler="source-hash"), *three)
    assert_none_lost(*survive(world, web, wire, kind, [[*two], [*three]]))
    web.delete()


@pytest.mark.parametrize("wire", [WIRES[1], WIRES[2]], ids=str)
def test_a_maglev_table_that_is_rewritten(world: World, wire: Wire) -> None:
    """All of its slots, among them that of the one client."""
    web = Web(world, wire)
    states: list[list[Object]] = [[*web.slices("pod1-1")], [*web.slices("pod2-1")]]
    world.apply(annotated(web.service(**bare(wire)), scheduler="maglev"), *states[1])
    found = survive(world, web, wire, "cluster", states, where="pod1-3", least=FEW)
    assert_none_lost(*found, least=FEW)
    web.delete()


def test_a_scheduler_that_changes(world: World) -> None:
    """The list has 3 slots, then 2 048, and the other way round."""
    wire = WIRES[1]
    web = Web(world, wire)
    web.apply(*HERE, "pod2-1", **bare(wire))
    states: list[list[Object]] = [
        [annotated(web.service(**bare(wire)), scheduler=scheduler)]
        for scheduler in ("maglev", None, "source-hash", "maglev", "random")
    ]
    found = survive(world, web, wire, "cluster", states, where="pod1-3", least=FEW)
    assert_none_lost(*found, least=FEW)
    web.delete()


@pytest.mark.parametrize(("scheduler", "least"), [(None, TRANSACTIONS), ("maglev", FEW)])
def test_weights_that_change(world: World, scheduler: str | None, least: int) -> None:
    """A list of 3, 11, 2 and 12 slots, or the shares of a table."""
    wire = WIRES[2]
    web = Web(world, wire)
    some, other = web.slices("pod1-1", "pod2-1"), web.slices("pod2-2", suffix="-b")
    world.apply(annotated(web.service(**bare(wire)), scheduler=scheduler), *some, *other)
    states: list[list[Object]] = [
        [annotated(piece, weight=weight) for piece in other] for weight in (None, "20", "0", "40")
    ]
    found = survive(world, web, wire, "cluster", states, where="pod1-3", least=least)
    assert_none_lost(*found, least=least)
    world.delete(web.service(), *some, *other)


@pytest.mark.contract("5.7.2", "2.4.1")
def test_affinity_that_comes_and_goes(world: World) -> None:
    wire = WIRES[1]
    web = Web(world, wire)
    web.apply(*HERE, "pod2-1")
    states: list[list[Object]] = [
        [web.service(sessionAffinity=affinity)] for affinity in ("ClientIP", "None")
    ]
    assert_none_lost(*survive(world, web, wire, "cluster", states))
    web.delete()


@pytest.mark.parametrize("kind", ["cluster", "vip", "nodeport"])
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@each_wire
def test_a_pick_that_misses_its_slot_takes_the_first(
    world: World, wire: Wire, kind: Kind, policy: str
) -> None:
    """As a packet would that read the verdict before a change and the list after it."""
    web = Web(world, wire)
    web.apply(
        "pod1-1", "pod1-2", "pod1-3", internalTrafficPolicy=policy, externalTrafficPolicy=policy
    )
    address, port, protocol = web.at(kind, wire)
    lists = (
        f"{'local_' if policy == 'Local' else ''}endpoints{wire.family.digit}-{protocol.lower()}"
    )
    if kind == "nodeport":
        lists, frontend = f"nodeport_{lists}", f"{port}"
    else:
        frontend = f"{address} . {port}"
    nft(
        world, "node1", f"delete element inet nftproxy {lists} {{ {frontend} . 1, {frontend} . 2 }}"
    )
    first = world.tables["node1"].kernel.elements(lists)[
        (port, 0) if kind == "nodeport" else (address, port, 0)
    ]
    assert isinstance(first, tuple)
    for _ in range(24):
        assert world.ask("client", address, port, protocol).address == first[0]
    world.tables["node1"].distrust(program=False)
    world.sync()


def test_zero_means_something(world: World) -> None:
    """A Service that comes and goes.

    In between packets do come out untranslated, and are counted.
    """
    wire = WIRES[1]
    web = Web(world, wire)
    world.apply(web.service())
    states: list[list[Object]] = [[*web.slices()], [*web.slices("pod1-1")]]
    untranslated, translated, _ = survive(world, web, wire, "vip", states, enough=20_000)
    assert untranslated > 0
    assert translated > 0
