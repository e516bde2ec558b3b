"""Which addresses of a node accept NodePorts (contract 2.6)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftproxy.address import Family, parse_address, parse_network
from nftproxy.configuration.settings import ALL, NodePortNetworks, OnLocalhost
from nftproxy.kernel.reader import Reader
from nftproxy.lab.client import Answer, Refused
from nftproxy.lab.namespace import enter
from nftproxy.table import schema
from tests.support.frontends import (
    SILENCE,
    WIRES,
    Web,
    Wire,
    add_address,
    becomes,
    each_wire,
    route_outside,
)
from tests.support.world import World

LATE = {Family.IPv4: "192.168.88.1", Family.IPv6: "fd00:88::1"}
LOOPBACK = {Family.IPv4: "127.0.0.1", Family.IPv6: "::1"}
MORE = {Family.IPv4: "192.168.88.0/24", Family.IPv6: "fd00:88::/64"}


@pytest.fixture(scope="module")
def everywhere() -> Iterator[World]:
    """NodePorts on all addresses."""
    with World(lab={"pods": 1}, nodeports=dict.fromkeys(Family, ALL)) as world:
        yield world


@pytest.fixture(scope="module")
def listed() -> Iterator[World]:
    """NodePorts on node addresses and on a network from which the node has no address at first.

    Loopback is listed too.
    """
    ports: dict[Family, NodePortNetworks] = {
        Family.IPv4: tuple(
            map(parse_network, ("192.168.50.0/24", MORE[Family.IPv4], "127.0.0.0/8"))
        ),
        Family.IPv6: tuple(map(parse_network, ("fd00:50::/64", MORE[Family.IPv6], "::1/128"))),
    }
    with World(lab={"pods": 1}, nodeports=ports) as world:
        yield world


@pytest.fixture(scope="module", params=["listed", "everywhere"])
def world(request: pytest.FixtureRequest) -> World:
    found: World = request.getfixturevalue(request.param)
    return found


def gateway(world: World, family: Family) -> str:
    return str(world.lab.place("node1").gateways[family])  # type: ignore[attr-defined]


@pytest.mark.contract("2.6.4", "2.6.5")
@each_wire
def test_on_its_address(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod1-1", "pod2-1")
    for where in ("pod1-1", "pod2-1", "node1", "node2", "client"):
        assert web.answers(where, "nodeport", wire) == {"pod1-1", "pod2-1"}, where
    assert web.answers("client", "nodeport", wire, node="node2") == {"pod1-1", "pod2-1"}


@pytest.mark.contract("2.6.4")
@each_wire
def test_everywhere_is_every_local_address(everywhere: World, wire: Wire) -> None:
    web = Web(everywhere)
    web.apply("pod2-1")
    address = gateway(everywhere, wire.family)
    for where in ("pod1-1", "node1"):
        assert everywhere.ask(where, address, web.node_port, wire.protocol).name == "pod2-1"
    add_address(everywhere, "node1", LATE[wire.family])
    everywhere.lab.route("client", f"{LATE[wire.family]}/{wire.family.bits}", "node1")
    assert (
        everywhere.ask("client", LATE[wire.family], web.node_port, wire.protocol).name == "pod2-1"
    )


@pytest.mark.contract("2.6.4", "2.5.4")
@each_wire
def test_everywhere_is_not_on_the_way_to_others(everywhere: World, wire: Wire) -> None:
    """A forwarded packet with a NodePort's number is none of ours, with endpoints and without."""
    web = Web(everywhere)
    everywhere.lab.listen("pod1-1", [web.node_port], [wire.protocol], [wire.family])
    target = everywhere.address("pod1-1", wire.family)
    for places in ((), ("pod2-1",)):
        web.apply(*places)
        assert everywhere.ask("client", target, web.node_port, wire.protocol).name == "pod1-1"


@pytest.mark.contract("2.5.4", "2.6.4")
@each_wire
def test_everywhere_is_refused_without_endpoints(everywhere: World, wire: Wire) -> None:
    web = Web(everywhere)
    web.apply()
    for address in (everywhere.address("node1", wire.family), gateway(everywhere, wire.family)):
        before = web.refusal_counter("nodeport", wire)
        assert everywhere.connect("pod1-1", address, web.node_port, wire.protocol) == Refused()
        assert becomes(lambda: web.refusal_counter("nodeport", wire), before + 1) == before + 1


@pytest.mark.contract("2.6.7", "2.6.5", "9.2")
@each_wire
@pytest.mark.parametrize("endpoints", [("pod1-1",), ()], ids=["with endpoints", "without"])
def test_never_on_loopback(world: World, wire: Wire, endpoints: tuple[str, ...]) -> None:
    web = Web(world)
    web.apply(*endpoints)
    loopback = LOOPBACK[wire.family]
    before = web.refusal_counter("nodeport", wire)
    # By nobody listening
    assert world.connect("node1", loopback, web.node_port, wire.protocol) == Refused()
    world.lab.listen("node1", [web.node_port], [wire.protocol], [wire.family])
    assert world.ask("node1", loopback, web.node_port, wire.protocol).name == "node1"
    assert web.refusal_counter("nodeport", wire) == before
    if wire.family is Family.IPv4:  # any of them
        assert world.ask("node1", "127.1.2.3", web.node_port, wire.protocol).name == "node1"


@pytest.fixture(scope="module", params=[OnLocalhost.REFUSED, OnLocalhost.FORWARDED])
def localhost(request: pytest.FixtureRequest) -> Iterator[World]:
    """NodePorts on all addresses, and refused or forwarded on those of loopback."""
    everywhere = dict.fromkeys(Family, ALL)
    with World(lab={"pods": 1}, nodeports=everywhere, on_localhost=request.param) as world:
        yield world


@pytest.mark.contract("2.10.9", "2.10.1")
@each_wire
@pytest.mark.parametrize("endpoints", [("pod1-1",), ()], ids=["with endpoints", "without"])
def test_refused_on_loopback(localhost: World, wire: Wire, endpoints: tuple[str, ...]) -> None:
    """A process of the node that listens there gets nothing, and other addresses are as ever."""
    web = Web(localhost)
    web.apply(*endpoints)
    localhost.lab.listen("node1", [web.node_port], [wire.protocol], [wire.family])
    choice = localhost.tables["node1"].settings.on_localhost[wire.family]
    refused = wire.protocol.lower() in choice.refused
    assert refused == (choice is OnLocalhost.REFUSED or wire.protocol != "TCP")
    addresses = [LOOPBACK[wire.family], *(["127.1.2.3"] if wire.family is Family.IPv4 else [])]
    for address in addresses:
        before = rejected(localhost, wire)
        outcome = localhost.connect("node1", address, web.node_port, wire.protocol)
        if refused:
            assert outcome == Refused()
            assert rejected(localhost, wire) == before + 1
        else:
            assert isinstance(outcome, Answer)
            assert outcome.name == "node1", "a forwarder would listen there"
            assert rejected(localhost, wire) == before
    outcome = localhost.connect("node1", *web.at("nodeport", wire))
    assert outcome == Refused() if not endpoints else isinstance(outcome, Answer)


def rejected(world: World, wire: Wire) -> int:
    """The packets that loopback addresses refused, by protocol."""
    with enter(world.lab.place("node1").namespace):
        reader = Reader()
    with contextlib.closing(reader):
        counters = reader.rule_counters(schema.refuse_localhost(wire.family))
    return dict(zip(schema.PROTOCOLS, counters, strict=True))[wire.protocol.lower()]


@pytest.mark.contract("2.10.10")
def test_nothing_of_it_is_left_when_it_is_off_or_another(localhost: World) -> None:
    """Each process starts from what the one before has left in the table."""
    web = Web(localhost)
    web.apply("pod1-1")
    key = ("tcp", web.node_port)

    def held() -> bool:
        table = localhost.tables["node1"]
        name = schema.LOCALHOST_NODEPORTS.name(Family.IPv4)
        return name in table.program.names() and key in set(table.kernel.keys(name))

    settings = localhost.tables["node1"].settings
    for choice in (OnLocalhost.REFUSED, OnLocalhost.FORWARDED, OnLocalhost.UNTOUCHED) * 2:
        localhost.start("node1", on_localhost=choice)
        web.apply("pod1-1")
        assert held() is (choice is OnLocalhost.REFUSED)
    localhost.start("node1", on_localhost=settings.on_localhost[Family.IPv4])


@pytest.mark.contract("2.6.9")
@each_wire
def test_a_process_on_the_same_port_loses_its_packets(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod2-1")
    world.lab.listen("node1", [web.node_port], [wire.protocol], [wire.family])
    for where in ("client", "node1", "pod1-1"):
        assert world.ask(where, *web.at("nodeport", wire)).name == "pod2-1"
    world.delete(web.service())
    assert world.ask("client", *web.at("nodeport", wire)).name == "node1"


@pytest.mark.contract("2.6.5", "2.6.6")
@each_wire
def test_listed_is_nowhere_else(listed: World, wire: Wire) -> None:
    web = Web(listed)
    web.apply("pod2-1")
    listed.lab.listen("node1", [web.node_port], [wire.protocol], [wire.family])
    assert (
        listed.ask("pod1-1", gateway(listed, wire.family), web.node_port, wire.protocol).name
        == "node1"
    )
    # An address that reaches the node but is on no interface of its own is not accepted, though it
    # is in a listed network.
    absent = {Family.IPv4: "192.168.88.99", Family.IPv6: "fd00:88::99"}[wire.family]
    listed.lab.route("client", f"{absent}/{wire.family.bits}", "node1")
    assert not isinstance(
        listed.connect("client", absent, web.node_port, wire.protocol, timeout=SILENCE), Answer
    )


@pytest.mark.contract("2.6.5")
@each_wire
def test_an_address_that_comes_later_and_goes(listed: World, wire: Wire) -> None:
    """Preferred to the original's hour: the next sync sees it, and no service is written for it."""
    web = Web(listed)
    web.apply("pod2-1")
    address = LATE[wire.family]
    listed.lab.route("client", f"{address}/{wire.family.bits}", "node1")
    add_address(listed, "node1", address)
    assert listed.connect("client", address, web.node_port, wire.protocol) == Refused()
    table = listed.tables["node1"]
    own = [
        parse_address(text)
        for text in (listed.address("node1", wire.family), gateway(listed, wire.family))
    ]
    report = table.sync(
        wire.family, [*own, parse_address(address), parse_address(LOOPBACK[wire.family])]
    )
    assert (report.services, report.written) == (0, 0)
    assert listed.ask("client", address, web.node_port, wire.protocol).name == "pod2-1"
    assert listed.ask("client", *web.at("nodeport", wire)).name == "pod2-1"
    listed.lab.ip("node1", f"addr del {address}/{wire.family.bits} dev lo")
    table.sync(wire.family, own)
    assert (address,) not in table.kernel.elements(f"nodeport_ips{wire.family.digit}")


@pytest.mark.contract("2.6.3")
def test_a_family_without_a_listed_network_is_open() -> None:
    """IPv4 NodePorts on one network, IPv6 ones on every address."""
    ports: dict[Family, NodePortNetworks] = {
        Family.IPv4: (parse_network("192.168.50.0/24"),),
        Family.IPv6: ALL,
    }
    with World(lab={"nodes": 1, "pods": 1}, nodeports=ports) as world:
        web = Web(world)
        web.apply("pod1-1")
        for wire in WIRES:
            assert world.ask("client", *web.at("nodeport", wire)).name == "pod1-1"
            outcome = world.connect(
                "pod1-1", gateway(world, wire.family), web.node_port, wire.protocol
            )
            if wire.family is Family.IPv6:
                assert isinstance(outcome, Answer)
            else:
                assert outcome == Refused()


@pytest.mark.contract("2.6.5", "2.6.6")
@each_wire
def test_no_address_accepts_any(wire: Wire) -> None:
    """A listed network of which the node has no address.

    NodePorts nowhere, and refusals nowhere.
    """
    ports: dict[Family, NodePortNetworks] = {wire.family: (parse_network(MORE[wire.family]),)}
    with World(lab={"nodes": 1, "pods": 1, "families": [wire.family]}, nodeports=ports) as world:
        route_outside(world)
        web = Web(world)
        web.apply("pod1-1")
        world.lab.listen("node1", [web.node_port], [wire.protocol], [wire.family])
        assert world.ask("client", *web.at("nodeport", wire)).name == "node1"
        assert world.ask("client", *web.at("vip", wire)).name == "pod1-1"


@pytest.mark.contract("2.6.8")
@each_wire
def test_source_ranges_do_not_protect_nodeports(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod1-1", loadBalancerSourceRanges=["198.51.100.0/24", "2001:db8::/32"])
    assert world.ask("client", *web.at("nodeport", wire)).name == "pod1-1"


@pytest.mark.contract("2.6.9")
def test_no_socket_is_opened(world: World) -> None:
    web = Web(world)
    web.apply("pod1-1")
    with world.lab.enter("node1"):
        for path in ("tcp", "tcp6", "udp", "udp6"):
            assert f":{web.node_port:04X} " not in Path(f"/proc/thread-self/net/{path}").read_text()
