"""What happens to connections that no endpoint takes.

Rejected, dropped, or not our business (contract 2.5; Appendix B 2, 5).
"""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.lab.client import Answer, Connection, Refused, Silent
from tests.support.frontends import (
    EXTERNAL,
    SILENCE,
    Kind,
    Ready,
    Web,
    Wire,
    add_address,
    becomes,
    each_external,
    each_kind,
    each_wire,
    foreign_rules,
    passes,
    rule_counters,
)
from tests.support.objects import service_cidr
from tests.support.world import World

each_family = pytest.mark.parametrize("family", list(Family))
SOURCES = ("pod1-1", "node1", "client")
DRAINING = {"ready": False, "serving": True, "terminating": True}
NOT_READY = {"ready": False, "serving": False, "terminating": False}
UNREACHABLE = {Family.IPv4: (3, 3), Family.IPv6: (1, 4)}  # type and code of "port unreachable"


@pytest.mark.contract("2.5", "2.5.1", "2.5.5", "2.5.4", "3.4.6", "2.7.9")
@each_wire
@each_kind
@pytest.mark.parametrize(
    ("endpoints", "spec"),
    [
        ((), {}),
        ((("pod1-1", NOT_READY), ("pod2-1", NOT_READY)), {}),
        ((), {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}),
        (
            (("pod2-1", NOT_READY),),
            {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"},
        ),
        ((), {"sessionAffinity": "ClientIP"}),
    ],
    ids=[
        "no endpoints",
        "none ready",
        "both local, no endpoints",
        "both local, none ready",
        "affinity",
    ],
)
def test_without_a_usable_endpoint_anywhere(
    world: World, wire: Wire, kind: Kind, endpoints: tuple[Ready, ...], spec: dict[str, Any]
) -> None:
    web = Web(world)
    web.apply(*endpoints, **spec)
    for where in SOURCES:
        before = web.refusal_counter(kind, wire)
        web.assert_refused(where, kind, wire)
        assert becomes(lambda: web.refusal_counter(kind, wire), before + 1) == before + 1


@pytest.mark.contract("2.5", "2.5.2", "3.4.6", "2.3.8")
@each_wire
@each_kind
@pytest.mark.parametrize(
    "elsewhere", ["pod2-1", ("pod2-1", DRAINING)], ids=["ready elsewhere", "draining elsewhere"]
)
def test_usable_only_elsewhere(world: World, wire: Wire, kind: Kind, elsewhere: Ready) -> None:
    web = Web(world)
    web.apply(
        elsewhere,
        ("pod1-1", NOT_READY),
        internalTrafficPolicy="Local",
        externalTrafficPolicy="Local",
    )
    for where in SOURCES:
        if kind == "cluster" or where == "client":
            web.assert_dropped(where, kind, wire)
        else:
            assert world.ask(where, *web.at(kind, wire)).name == "pod2-1"


@pytest.mark.contract("2.5.1", "2.5.2", "3.4.6")
@each_wire
@each_external
def test_cluster_policy_never_drops(world: World, wire: Wire, kind: Kind) -> None:
    """Internal policy Local and nothing here.

    The ClusterIP is dropped, external addresses still reach the endpoint elsewhere.
    """
    web = Web(world)
    web.apply("pod2-1", internalTrafficPolicy="Local")
    web.assert_dropped("client", "cluster", wire)
    assert world.ask("client", *web.at(kind, wire)).name == "pod2-1"


@pytest.mark.contract("2.5.1", "2.5.6")
@each_wire
@pytest.mark.parametrize("kind", ["cluster", "vip", "other port"])
@pytest.mark.parametrize("where", SOURCES)
def test_a_rejection_is_port_unreachable(world: World, wire: Wire, kind: str, where: str) -> None:
    web = Web(world)
    web.apply()
    address = web.address("vip" if kind == "vip" else "cluster", wire.family)
    with icmp(world, where, wire.family) as listening:
        started = time.monotonic()
        assert (
            world.connect(where, address, 81 if kind == "other port" else 80, wire.protocol)
            == Refused()
        )
        assert time.monotonic() - started < 0.9, "at once, not with the client's second try"
        assert next_error(listening, wire.family) == UNREACHABLE[wire.family]


@pytest.mark.contract("2.5.6", "9.3")
@each_family
@pytest.mark.parametrize("where", SOURCES)
@pytest.mark.parametrize(
    "endpoints", [(), ("pod1-1",)], ids=["without endpoints", "with endpoints"]
)
def test_ping_of_a_cluster_ip_is_rejected(
    world: World, family: Family, where: str, endpoints: tuple[str, ...]
) -> None:
    web = Web(world)
    web.apply(*endpoints)
    reject, _ = rule_counters(world, "node1", f"refuse-unknown{family.digit}")
    with icmp(world, where, family) as sending:
        ping(sending, web.address("cluster", family))
        assert next_error(sending, family) == UNREACHABLE[family]
    assert (
        becomes(
            lambda: rule_counters(world, "node1", f"refuse-unknown{family.digit}")[0], reject + 1
        )
        == reject + 1
    )


@pytest.mark.contract("2.2.2", "2.5.6")
@each_family
@pytest.mark.parametrize("kind", ["vip", "external"])
def test_ping_of_an_external_address_is_not_our_business(
    world: World, family: Family, kind: Kind
) -> None:
    web = Web(world)
    web.apply()
    ip, proto = ("ip", "icmp") if family is Family.IPv4 else ("ip6", "icmpv6")
    address = web.address(kind, family)
    rules = f"""
    counter passed {{ }}
    chain forward {{ type filter hook forward priority 300; {ip} daddr {address} meta l4proto {proto} counter name passed; }}"""  # noqa: E501
    with foreign_rules(world, "node1", rules):
        with icmp(world, "client", family) as sending:
            ping(sending, address)
            assert next_error(sending, family) != UNREACHABLE[family]
        assert passes(world, "node1", "passed")


@pytest.mark.contract("2.5.3", "2.9.1")
@each_wire
@each_kind
def test_established_connections_are_never_refused(world: World, wire: Wire, kind: Kind) -> None:
    web = Web(world)
    web.apply("pod1-1", "pod2-1")
    connection = world.lab.open_connection("client", *web.at(kind, wire))
    assert isinstance(connection, Connection)
    with connection:
        web.apply()
        web.assert_refused("client", kind, wire)
        assert connection.again() == connection.answer
        web.apply("pod2-2", internalTrafficPolicy="Local", externalTrafficPolicy="Local")
        web.assert_dropped("client", kind, wire)
        assert connection.again() == connection.answer


@pytest.mark.contract("2.5.4", "2.6.5", "2.6.9")
@each_wire
def test_a_nodeport_is_refused_on_accepted_addresses_only(world: World, wire: Wire) -> None:
    """A process on the same port of the node does not get its packets.

    On another address of the node it does.
    """
    web = Web(world)
    web.apply()
    port = web.node_port
    world.lab.listen("node1", [port], [wire.protocol], [wire.family])
    web.assert_refused("client", "nodeport", wire)
    gateway = world.lab.place("node1").gateways[wire.family]  # type: ignore[attr-defined]
    assert world.ask("pod1-1", gateway, port, wire.protocol).name == "node1"
    web.apply("pod2-1")
    assert world.ask("client", *web.at("nodeport", wire)).name == "pod2-1"
    assert world.ask("pod1-1", gateway, port, wire.protocol).name == "node1"


@pytest.mark.contract("2.5.4")
@each_wire
def test_a_nodeport_of_another_machine_is_not_refused_on_the_way(world: World, wire: Wire) -> None:
    """Forwarded packets with a NodePort's number go where they are sent."""
    web = Web(world)
    web.apply()
    world.lab.listen("pod1-1", [web.node_port], [wire.protocol], [wire.family])
    answer = world.ask("client", world.address("pod1-1", wire.family), web.node_port, wire.protocol)
    assert (answer.name, answer.source) == ("pod1-1", world.address("client", wire.family))


@pytest.mark.contract("2.5.5")
@each_wire
@pytest.mark.parametrize("kind", ["external", "vip"])
def test_an_external_address_that_the_node_has(world: World, wire: Wire, kind: Kind) -> None:
    """Then the refusal is on the input path, in front of a process that listens there."""
    web = Web(world)
    web.apply()
    address, port, protocol = web.at(kind, wire)
    add_address(world, "node1", address)
    web.port = 1000 + web.node_port  # a port of its own for the process
    world.lab.listen("node1", [web.port], [protocol], [wire.family])
    assert world.ask("client", address, web.port, protocol).name == "node1"
    web.apply()
    for where in SOURCES:
        web.assert_refused(where, kind, wire)
    web.apply("pod2-1", externalTrafficPolicy="Local")
    web.assert_dropped("client", kind, wire)
    web.apply("pod2-1")
    assert world.ask("client", *web.at(kind, wire)).name == "pod2-1"
    assert port == 80


@pytest.mark.contract("2.5.7", "1.5.1", "9.4")
@each_wire
@pytest.mark.parametrize("where", SOURCES)
def test_an_address_that_no_service_has_is_dropped(world: World, wire: Wire, where: str) -> None:
    family, protocol = wire
    web = Web(world)
    web.apply("pod1-1")
    address = {Family.IPv4: "10.96.200.200", Family.IPv6: "fd00:10:96::ff0f"}[family]
    chain = f"refuse-unknown{family.digit}"
    world.apply(service_cidr("kubernetes", "10.96.0.0/16", "fd00:10:96::/112"))
    try:
        _, drop = rule_counters(world, "node1", chain)
        assert world.connect(where, address, 80, protocol, timeout=SILENCE) == Silent()
        assert becomes(lambda: rule_counters(world, "node1", chain)[1], drop + 1) == drop + 1
        assert world.ask(where, *web.at("cluster", wire)).name == "pod1-1"
        assert world.connect(where, web.address("cluster", family), 81, protocol) == Refused()
    finally:
        world.delete(service_cidr("kubernetes"))
    _, drop = rule_counters(world, "node1", chain)
    assert not isinstance(world.connect(where, address, 80, protocol, timeout=SILENCE), Answer)
    assert rule_counters(world, "node1", chain)[1] == drop, (
        "without a ServiceCIDR there is nothing to drop"
    )


CIDRS: dict[str, tuple[list[tuple[str, ...]], dict[str, bool]]] = {
    "one": ([("10.96.0.0/16",)], {"10.96.200.1": True, "10.97.0.1": False}),
    "two in one object": (
        [("10.96.0.0/16", "10.97.0.0/16")],
        {"10.96.200.1": True, "10.97.0.1": True, "10.98.0.1": False},
    ),
    "shared by two": ([("10.96.0.0/16",), ("10.96.0.0/16",)], {"10.96.200.1": True}),
    "inside each other": (
        [("10.96.200.0/24",), ("10.0.0.0/9",), ("10.96.0.0/12",)],
        {"10.96.200.1": True, "10.1.0.1": True},
    ),
    "side by side": (
        [("10.96.0.0/17",), ("10.96.128.0/17",)],
        {"10.96.200.1": True, "10.97.0.1": False},
    ),
    "side by side, but no larger one": (
        [("10.95.0.0/16", "10.96.0.0/16")],
        {"10.96.200.1": True, "10.95.0.1": True, "10.97.0.1": False},
    ),
    "host bits": ([("10.96.3.4/16",)], {"10.96.200.1": True}),
    "the other family": ([("fd00:10:96::/112",)], {"10.96.200.1": False, "fd00:10:96::ff01": True}),
    "everything": ([("0.0.0.0/0",)], {"10.96.200.1": True, "198.18.15.1": True}),
    "nonsense": ([("nonsense", "10.97.0.0/16")], {"10.96.200.1": False, "10.97.0.1": True}),
}


@pytest.mark.contract("2.5.7", "1.5.1", "1.5.2", "1.5.3")
@pytest.mark.parametrize(("objects", "expected"), CIDRS.values(), ids=CIDRS)
def test_service_cidrs(
    world: World, objects: list[tuple[str, ...]], expected: dict[str, bool]
) -> None:
    """Objects come one by one, and go one by one: what is left is what counts."""
    for number, cidrs in enumerate(objects):
        world.apply(service_cidr(f"c{number}", *cidrs))
    for number in reversed(range(len(objects))):
        for address, dropped in expected.items() if number == len(objects) - 1 else ():
            assert drops(world, address, expected=dropped) == dropped, address
        world.delete(service_cidr(f"c{number}"))
        if number and objects[number] == objects[0]:
            assert drops(world, "10.96.200.1", expected=True)
    assert not any(drops(world, address, expected=False) for address in expected)


def drops(world: World, address: str, *, expected: bool) -> bool:
    chain = f"refuse-unknown{'6' if ':' in address else '4'}"
    before = rule_counters(world, "node1", chain)[1]
    world.connect("node1", address, 80, "UDP", timeout=0.02)
    return becomes(lambda: rule_counters(world, "node1", chain)[1] > before, expected)


@pytest.mark.contract("2.5.8", "2.7.9")
@each_wire
@pytest.mark.parametrize("spec", [{}, {"externalTrafficPolicy": "Local"}], ids=["cluster", "local"])
def test_source_ranges_come_first(world: World, wire: Wire, spec: dict[str, Any]) -> None:
    """Without endpoints a blocked source sees a drop, an allowed one a rejection."""
    web = Web(world)
    allowed = [f"{world.address('client', family)}/{family.bits}" for family in Family]
    web.apply(loadBalancerSourceRanges=allowed, **spec)
    chain = f"allowed{wire.family.digit}"
    web.assert_refused("client", "vip", wire)
    for where in ("pod1-1", "node1"):
        (before,) = rule_counters(world, "node1", chain)
        refused = web.refusal_counter("vip", wire)
        assert world.connect(where, *web.at("vip", wire), timeout=SILENCE) == Silent()
        assert becomes(lambda: rule_counters(world, "node1", chain), [before + 1]) == [before + 1]
        assert web.refusal_counter("vip", wire) == refused
    for kind in (k for k in EXTERNAL if k != "vip"):
        web.assert_refused("pod1-1", kind, wire)


@pytest.mark.contract("9.5", "9.6")
@each_family
def test_invalid_packets_and_drops_of_others(world: World, family: Family) -> None:
    """What conntrack calls invalid is forwarded as if we were not there, and nothing of ours
    overrules a drop of another table.
    """
    ip, target = "ip6" if family is Family.IPv6 else "ip", world.address("pod1-1", family)
    rules = f"""
    counter invalid {{ }}
    chain behind {{
        type filter hook forward priority 300
        {ip} daddr {target} tcp dport 8080 ct state invalid counter name invalid
    }}"""
    with foreign_rules(world, "node1", rules):
        # SYN and FIN at once
        segment = struct.pack("!HHIIBBHHH", 40000, 8080, 1, 1, 5 << 4, 0b000011, 1000, 0, 0)
        with world.lab.enter("client"):
            raw = socket.socket(
                socket.AF_INET6 if family is Family.IPv6 else socket.AF_INET,
                socket.SOCK_RAW,
                socket.IPPROTO_TCP,
            )
        with raw:
            raw.sendto(segment, (target, 0))
        assert passes(world, "node1", "invalid")
    with foreign_rules(
        world, "node1", "chain shut { type filter hook forward priority 300; policy drop; }"
    ):
        web = Web(world)
        web.apply("pod1-1")
        for protocol in ("TCP", "UDP"):
            assert (
                world.connect("client", *web.at("vip", Wire(family, protocol)), timeout=SILENCE)
                == Silent()
            )


@contextlib.contextmanager
def icmp(world: World, where: str, family: Family) -> Iterator[socket.socket]:
    """A raw ICMP socket in a place."""
    af, proto = (
        (socket.AF_INET, socket.IPPROTO_ICMP)
        if family is Family.IPv4
        else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    with world.lab.enter(where):
        raw = socket.socket(af, socket.SOCK_RAW, proto)
    with raw:
        yield raw


def ping(raw: socket.socket, address: str) -> None:
    """Send an echo request."""
    kind = 8 if raw.family == socket.AF_INET else 128
    packet = struct.pack("!BBHHH", kind, 0, 0, 1, 1)
    if raw.family == socket.AF_INET:  # for IPv6 the kernel fills in the checksum
        packet = struct.pack("!BBHHH", kind, 0, 0xFFFF - sum(struct.unpack("!4H", packet)), 1, 1)
    with contextlib.suppress(PermissionError):
        raw.sendto(packet, (address, 0))


def next_error(raw: socket.socket, family: Family) -> tuple[int, int] | None:
    """Type and code of the next ICMP error; None when none comes."""
    errors = {3} if family is Family.IPv4 else {1}
    deadline = time.monotonic() + 0.5
    while (left := deadline - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            data = raw.recv(2048)
        except TimeoutError:
            return None
        start = (data[0] & 15) * 4 if family is Family.IPv4 else 0
        if data[start] in errors:
            return data[start], data[start + 1]
    return None
