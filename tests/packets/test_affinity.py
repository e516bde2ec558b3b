"""ClientIP affinity with packets.

Who is remembered, for how long, for which list, and what makes it go (contract 2.4).
"""

import ipaddress
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.lab.client import Answer
from nftproxy.routes import Key, Value
from nftproxy.table.schema import PROTOCOLS
from tests.support.frontends import (
    KINDS,
    WIRES,
    Kind,
    Ready,
    Web,
    Wire,
    add_address,
    each_kind,
    each_wire,
    foreign_rules,
    listing,
    nft,
)
from tests.support.world import SLOW, World

PODS = ("pod1-1", "pod1-2", "pod2-1")
# So many that none of three endpoints is missed by chance: 3 in 10 million.
CLIENTS = {
    Family.IPv4: [f"192.168.99.{n}" for n in range(1, 41)],
    Family.IPv6: [f"fd00:99::{n}" for n in range(1, 41)],
}
DRAINING = {"ready": False, "serving": True, "terminating": True}
LOCAL = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}


@pytest.fixture(scope="module")
def world(world: World) -> World:
    world.lab.listen("node1", [8080])
    for family, cidr in ((Family.IPv4, "192.168.99.0/24"), (Family.IPv6, "fd00:99::/64")):
        for address in CLIENTS[family]:
            add_address(world, "client", address)
        for node in ("node1", "node2"):
            world.lab.route(node, cidr, "client")
    return world


class Sticky(Web):
    """A Service with ClientIP affinity."""

    def service(self, **spec: Any) -> Any:
        timeout = spec.pop("timeout", 10800)
        affinity = {
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout}},
        }
        return super().service(**{**affinity, **spec})

    def memory_name(self, wire: Wire, which: str = "affinity", port: int = 8080) -> str:
        protocol = wire.protocol.lower()
        return f"{which}{wire.family.digit}-default/{self.name}/{protocol}/{protocol}-{port}"

    def memory(self, wire: Wire, which: str = "affinity", port: int = 8080) -> dict[str, str]:
        """Who is remembered on node1, and for which endpoint address."""
        found = self.world.tables["node1"].kernel.elements(self.memory_name(wire, which, port))
        return {str(key[0]): str(value) for key, value in found.items()}

    def ask_from(self, source: str, kind: Kind, wire: Wire) -> str:
        return self.world.ask("client", *self.at(kind, wire), source=source).name

    def ask_all(self, kind: Kind, wire: Wire) -> dict[str, str]:
        """One connection from each client address: who answered it."""
        return {source: self.ask_from(source, kind, wire) for source in CLIENTS[wire.family]}


@pytest.fixture
def sticky(world: World, wire: Wire) -> Iterator[Sticky]:
    """One of the family and protocol under test.

    Gone afterwards, because each costs the table some objects.
    """
    made = Sticky(world, wire)
    yield made
    made.delete()


def lifetime(world: World, sticky: Sticky, wire: Wire) -> dict[str, tuple[int, int]]:
    """Of each remembered client the timeout and how many seconds are left."""
    (item,) = listing(world, "node1", f"map inet nftproxy {sticky.memory_name(wire)}")
    entries = [entry[0]["elem"] for entry in item["map"].get("elem", [])]
    return {entry["val"]: (entry["timeout"], entry["expires"]) for entry in entries}


@pytest.mark.contract("2.4.1", "3.4.9")
@each_wire
@each_kind
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_a_client_stays_and_clients_differ(
    sticky: Sticky, wire: Wire, kind: Kind, policy: str
) -> None:
    sticky.apply(*PODS, internalTrafficPolicy=policy, externalTrafficPolicy=policy)
    first = sticky.ask_all(kind, wire)
    assert set(first.values()) == ({"pod1-1", "pod1-2"} if policy == "Local" else set(PODS))
    for _ in range(3):
        assert sticky.ask_all(kind, wire) == first


@pytest.mark.contract("2.4.1", "2.4.5")
@each_wire
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_a_service_with_nothing_but_a_cluster_ip(sticky: Sticky, wire: Wire, policy: str) -> None:
    """It uses one list alone, and so has the objects for that list alone."""
    ports = [{"name": wire.protocol.lower(), "protocol": wire.protocol, "port": 80}]
    spec: dict[str, Any] = {
        "ports": ports,
        "vips": [],
        "externalIPs": [],
        "internalTrafficPolicy": policy,
    }
    sticky.apply(*PODS, **spec)
    first = sticky.ask_all("cluster", wire)
    assert set(first.values()) == ({"pod1-1", "pod1-2"} if policy == "Local" else set(PODS))
    assert sticky.ask_all("cluster", wire) == first
    sticky.apply("pod1-1", "pod2-1", **spec)
    after = sticky.ask_all("cluster", wire)
    assert set(after.values()) <= {"pod1-1", "pod2-1"}
    assert {client for client, name in first.items() if name == "pod1-1"} <= {
        c for c, name in after.items() if name == "pod1-1"
    }


@pytest.mark.contract("2.4.1")
@each_wire
@each_kind
@pytest.mark.parametrize("where", ["pod1-1", "pod1-3", "node1"])
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_pods_and_the_node_stay_too(
    sticky: Sticky, wire: Wire, kind: Kind, where: str, policy: str
) -> None:
    sticky.apply(*PODS, internalTrafficPolicy=policy, externalTrafficPolicy=policy)
    assert len(sticky.answers(where, kind, wire, times=16)) == 1


@pytest.mark.contract("2.4.2")
@each_wire
@pytest.mark.parametrize("first", KINDS)
def test_remembered_at_every_address_of_the_port(
    world: World, sticky: Sticky, wire: Wire, first: Kind
) -> None:
    sticky.apply(*PODS)
    chosen = sticky.ask_all(first, wire)
    for kind in KINDS:
        assert sticky.ask_all(kind, wire) == chosen
    assert sticky.memory(wire) == {
        source: world.address(name, wire.family) for source, name in chosen.items()
    }


@pytest.mark.contract("2.4.2")
@each_wire
def test_not_shared_between_ports(world: World, sticky: Sticky, wire: Wire) -> None:
    ports = [
        {"name": name, "protocol": wire.protocol, "port": port}
        for name, port in (("a", 80), ("b", 81))
    ]
    world.apply(
        sticky.service(ports=ports),
        *sticky.slices(*PODS, names={"a": wire.protocol, "b": wire.protocol}),
    )
    at_a = sticky.ask_all("cluster", wire)
    kernel = world.tables["node1"].kernel
    family, protocol = wire.family.digit, wire.protocol.lower()
    assert kernel.elements(f"affinity{family}-default/{sticky.name}/{protocol}/a-8080") != {}
    assert kernel.elements(f"affinity{family}-default/{sticky.name}/{protocol}/b-8080") == {}
    sticky.port = 81
    at_b = sticky.ask_all("cluster", wire)
    assert at_a != at_b, "equal once in three thousand million runs"
    assert sticky.ask_all("cluster", wire) == at_b


@pytest.mark.contract("2.4.2")
@each_wire
def test_the_source_port_is_ignored_and_the_original_source_counts(
    sticky: Sticky, wire: Wire
) -> None:
    """Masqueraded connections are remembered by the client, not by the address they get."""
    sticky.apply(*PODS)
    sticky.ask_from(CLIENTS[wire.family][0], "nodeport", wire)
    assert set(sticky.memory(wire)) == {CLIENTS[wire.family][0]}


@pytest.mark.contract("2.4.1", "2.4.3", "2.4.6")
def test_the_timer(world: World) -> None:
    """New connections renew it, silence lets it run out.

    All wires at once, because it takes time.
    """
    sticky = Sticky(world)
    sticky.apply(*PODS, timeout=2)
    clients = {wire: CLIENTS[wire.family][0] for wire in WIRES}
    first = {wire: sticky.ask_from(clients[wire], "vip", wire) for wire in WIRES}
    started = time.monotonic()
    while time.monotonic() < started + 2.5:
        asked = time.monotonic()
        answers = {wire: sticky.ask_from(clients[wire], "vip", wire) for wire in WIRES}
        assert time.monotonic() - asked < 1.5, (
            "this machine is too slow to renew a timer of two seconds"
        )
        assert answers == first
        time.sleep(0.3)
    deadline = time.monotonic() + 4
    while any(sticky.memory(wire) for wire in WIRES):
        assert time.monotonic() < deadline, "remembered beyond the timeout"
        time.sleep(0.05)
    for wire in WIRES:  # forgotten: any endpoint may come now, and is remembered again
        assert sticky.ask_from(clients[wire], "vip", wire) == sticky.ask_from(
            clients[wire], "vip", wire
        )
        assert set(sticky.memory(wire)) == {clients[wire]}


@pytest.mark.contract("2.4.3")
@each_wire
def test_renewal_is_to_the_full_timeout(world: World, sticky: Sticky, wire: Wire) -> None:
    sticky.apply("pod1-1", timeout=10800)
    client = CLIENTS[wire.family][0]
    # As if it had been learnt long ago; for the member that the kernel would have learnt.
    address = world.address("pod1-1", wire.family)
    nft(
        world,
        "node1",
        f"add element inet nftproxy {sticky.memory_name(wire)} "
        f"{{ {client} timeout 100s : {address} }}",
    )
    assert lifetime(world, sticky, wire)[client][1] <= 100
    sticky.ask_from(client, "cluster", wire)
    assert lifetime(world, sticky, wire)[client][1] > 10000


@pytest.mark.contract("2.4.6", "2.4.1")
@each_wire
def test_a_changed_timeout_is_for_new_entries(world: World, sticky: Sticky, wire: Wire) -> None:
    """What is remembered stays remembered."""
    sticky.apply(*PODS, timeout=10800)
    one, two = CLIENTS[wire.family][:2]
    chosen = sticky.ask_from(one, "cluster", wire)
    sticky.apply(*PODS, timeout=500)
    assert set(sticky.memory(wire)) == {one}
    sticky.ask_from(two, "cluster", wire)
    assert lifetime(world, sticky, wire)[two][0] == 500
    assert sticky.ask_from(one, "cluster", wire) == chosen
    sticky.apply(*PODS, timeout=86400)
    three = CLIENTS[wire.family][2]
    sticky.ask_from(three, "cluster", wire)
    assert lifetime(world, sticky, wire)[three][0] == 86400
    assert sticky.ask_from(one, "cluster", wire) == chosen


GONE: dict[str, tuple[Ready, ...]] = {
    "deleted": ("pod1-1", "pod1-2"),
    "not ready": ("pod1-1", "pod1-2", ("pod2-1", {"ready": False})),
    "draining": ("pod1-1", "pod1-2", ("pod2-1", DRAINING)),
}


@pytest.mark.contract("2.4.1", "2.4.5")
@each_wire
@pytest.mark.parametrize("places", GONE.values(), ids=GONE)
def test_an_endpoint_that_goes(
    world: World, sticky: Sticky, wire: Wire, places: tuple[Ready, ...]
) -> None:
    """Nobody is sent there any more, everybody else stays, and it has to win its clients anew when
    it comes back.
    """
    sticky.apply(*PODS)
    before = sticky.ask_all("cluster", wire)
    sticky.apply(*places)
    gone = world.address("pod2-1", wire.family)
    assert gone not in sticky.memory(wire).values()
    after = sticky.ask_all("cluster", wire)
    assert "pod2-1" not in after.values()
    assert {c: e for c, e in before.items() if e != "pod2-1"} == {
        c: e for c, e in after.items() if before[c] != "pod2-1"
    }
    sticky.apply(*PODS)
    assert sticky.ask_all("cluster", wire) == after


@pytest.mark.contract("2.4.5")
@each_wire
def test_all_endpoints_go_and_others_come(sticky: Sticky, wire: Wire) -> None:
    sticky.apply("pod1-1")
    sticky.ask_all("vip", wire)
    sticky.apply()
    sticky.assert_refused("client", "vip", wire)
    sticky.apply("pod2-1")
    assert set(sticky.ask_all("vip", wire).values()) == {"pod2-1"}
    sticky.apply("pod1-1", "pod2-1")
    assert set(sticky.ask_all("vip", wire).values()) == {"pod2-1"}


@pytest.mark.contract("2.4.5")
@each_wire
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_a_service_that_comes_back_knows_nobody(
    world: World, sticky: Sticky, wire: Wire, restarted: bool
) -> None:
    """Its memories are still there, because they are deleted some seconds after it."""
    sticky.apply(*PODS)
    client = CLIENTS[wire.family][0]
    sticky.ask_from(client, "cluster", wire)
    world.delete(sticky.service())
    assert set(sticky.memory(wire)) == {client}
    if restarted:
        world.start("node1")
    sticky.apply(*PODS)
    assert sticky.memory(wire) == {}
    chosen = sticky.ask_from(client, "cluster", wire)
    assert sticky.memory(wire) == {client: world.address(chosen, wire.family)}


@pytest.mark.contract("2.4.5")
@each_wire
def test_an_endpoint_that_changes_its_port(world: World, sticky: Sticky, wire: Wire) -> None:
    """The same address with another port number is another endpoint."""
    sticky.apply("pod1-1", "pod2-1")
    before = sticky.ask_all("cluster", wire)
    sticky.apply("pod1-1", "pod2-1", port=9376)
    answers = [world.ask("client", *sticky.at("cluster", wire), source=source) for source in before]
    assert {answer.port for answer in answers} == {9376}
    assert sticky.ask_all("cluster", wire) == {
        source: a.name for source, a in zip(before, answers, strict=True)
    }
    sticky.apply("pod1-1", "pod2-1", port=8080)
    answers = [world.ask("client", *sticky.at("cluster", wire), source=source) for source in before]
    assert {answer.port for answer in answers} == {8080}


@pytest.mark.contract("2.4.1", "3.2.3")
@each_wire
def test_endpoints_with_several_port_numbers(world: World, sticky: Sticky, wire: Wire) -> None:
    """Also two endpoints with one address."""
    slices = [
        *sticky.slices("pod1-1", "pod2-1", suffix="-a"),
        *sticky.slices("pod1-1", port=9376, suffix="-b"),
    ]
    world.apply(sticky.service(), *slices)

    def ask_all() -> dict[str, tuple[str, int]]:
        answers = {
            s: world.ask("client", *sticky.at("external", wire), source=s)
            for s in CLIENTS[wire.family]
        }
        return {source: (answer.name, answer.port) for source, answer in answers.items()}

    before = ask_all()
    assert set(before.values()) == {("pod1-1", 8080), ("pod2-1", 8080), ("pod1-1", 9376)}
    assert ask_all() == before
    world.apply(*sticky.slices("pod2-1", suffix="-a"))
    after = ask_all()
    assert ("pod1-1", 8080) not in after.values()
    assert {s: e for s, e in before.items() if e != ("pod1-1", 8080)}.items() <= after.items()


@pytest.mark.contract("2.4.4", "2.4.2", "2.4.1")
@each_wire
def test_each_list_has_its_own_memory(sticky: Sticky, wire: Wire) -> None:
    """A client that uses both lists keeps one endpoint in each, and an endpoint of both lists is
    remembered for both.
    """
    sticky.apply("pod1-1", "pod1-2", "pod2-1", externalTrafficPolicy="Local")
    by_cluster_ip = sticky.ask_all("cluster", wire)
    by_vip = sticky.ask_all("vip", wire)
    assert set(by_cluster_ip.values()) == set(PODS)
    assert set(by_vip.values()) == {"pod1-1", "pod1-2"}
    for client, endpoint in by_cluster_ip.items():
        if endpoint != "pod2-1":
            assert by_vip[client] == endpoint
    for _ in range(2):
        assert sticky.ask_all("cluster", wire) == by_cluster_ip
        assert sticky.ask_all("nodeport", wire) == by_vip


@pytest.mark.contract("2.4.5", "2.4.4")
@each_wire
def test_leaving_one_list_only(sticky: Sticky, wire: Wire) -> None:
    """An endpoint here that drains while others are ready.

    Still used for eTP Local, forgotten for the ClusterIP.
    """
    sticky.apply("pod1-1", "pod2-1", externalTrafficPolicy="Local")
    sticky.ask_all("cluster", wire)
    assert set(sticky.ask_all("vip", wire).values()) == {"pod1-1"}
    sticky.apply(("pod1-1", DRAINING), "pod2-1", externalTrafficPolicy="Local")
    assert set(sticky.ask_all("cluster", wire).values()) == {"pod2-1"}
    assert set(sticky.ask_all("vip", wire).values()) == {"pod1-1"}
    sticky.apply("pod1-1", ("pod1-2", {"node": "node2"}), externalTrafficPolicy="Local")
    assert set(sticky.ask_all("vip", wire).values()) == {"pod1-1"}
    sticky.apply(
        ("pod1-1", {"node": "node2"}), ("pod1-2", {"node": "node1"}), externalTrafficPolicy="Local"
    )
    assert set(sticky.ask_all("vip", wire).values()) == {"pod1-2"}


@pytest.mark.contract("2.4.1", "2.3.7")
@each_wire
@pytest.mark.parametrize(
    "before",
    [{}, LOCAL, {"internalTrafficPolicy": "Local"}, {"externalTrafficPolicy": "Local"}],
    ids=str,
)
@pytest.mark.parametrize("after", [{}, LOCAL], ids=str)
def test_a_policy_that_changes(
    sticky: Sticky, wire: Wire, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Only endpoints of the list that applies now."""
    sticky.apply(*PODS, **before)
    for kind in KINDS:
        sticky.ask_from(CLIENTS[wire.family][0], kind, wire)
    sticky.apply(*PODS, **after)
    usable = {"pod1-1", "pod1-2"} if after else set(PODS)
    for kind in KINDS:
        answers = sticky.ask_all(kind, wire)
        assert set(answers.values()) <= usable
        assert sticky.ask_all(kind, wire) == answers


@pytest.mark.contract("2.4.1")
@each_wire
def test_switched_off_and_on(sticky: Sticky, wire: Wire) -> None:
    client = CLIENTS[wire.family][0]
    sticky.apply(*PODS)
    sticky.ask_all("cluster", wire)
    sticky.apply(*PODS, sessionAffinity="None")
    assert {sticky.ask_from(client, "cluster", wire) for _ in range(64)} == set(PODS)
    sticky.apply("pod1-2", "pod2-1", sessionAffinity="None")
    sticky.apply("pod1-2", "pod2-1")
    first = sticky.ask_all("cluster", wire)
    assert set(first.values()) <= {"pod1-2", "pod2-1"}
    assert sticky.ask_all("cluster", wire) == first


@pytest.mark.contract("2.4.1", "2.4.5")
@each_wire
@pytest.mark.parametrize("where", ["client", "pod1-1", "node1"])
def test_an_endpoint_on_the_node_itself(
    world: World, sticky: Sticky, wire: Wire, where: str
) -> None:
    """Its connections end on the input path, or never leave the node."""
    sticky.apply("node1")
    sticky.answers(where, "cluster", wire, times=1)
    source = world.address(where, wire.family)
    assert sticky.memory(wire) == {source: world.address("node1", wire.family)}
    sticky.apply("node1", *PODS)
    for kind in KINDS:
        assert sticky.answers(where, kind, wire, times=8) == {"node1"}
    sticky.apply(*PODS)
    assert "node1" not in sticky.answers(where, "cluster", wire, times=8)


@pytest.mark.contract("2.4.1")
@each_wire
@pytest.mark.parametrize("kind", ["vip", "nodeport"])
def test_the_node_reaches_its_own_endpoint_masqueraded(
    world: World, sticky: Sticky, wire: Wire, kind: Kind
) -> None:
    """The packet comes back through the loopback interface; its new source is no client."""
    sticky.apply("node1")
    other = world.lab.nodes[0].gateways[wire.family]
    assert world.ask("node1", *sticky.at(kind, wire), source=other).name == "node1"
    assert set(sticky.memory(wire)) == {other}


@pytest.mark.contract("2.4.5", "5.7.7")
@each_wire
def test_a_restart_forgets_nobody(world: World, sticky: Sticky, wire: Wire) -> None:
    """A new process with nothing but the table and the objects."""
    sticky.apply(*PODS, externalTrafficPolicy="Local")
    before = {kind: sticky.ask_all(kind, wire) for kind in ("cluster", "vip")}
    store = world.tables["node1"].store
    table = world.start("node1")
    table.store = store
    for syncer in table.syncers.values():
        syncer._store = store
    world.sync()
    assert {kind: sticky.ask_all(kind, wire) for kind in ("cluster", "vip")} == before


@pytest.mark.contract("2.4.1")
@each_wire
@pytest.mark.parametrize("kind", ["cluster", "vip"])
@pytest.mark.parametrize("priority", [-150, 99, 100])
def test_somebody_else_masquerades_first(
    world: World, sticky: Sticky, wire: Wire, kind: Kind, priority: int
) -> None:
    """A CNI plugin may have a rule in front of ours.

    Clients are remembered all the same, and by their own address.
    """
    ip = "ip6" if wire.family is Family.IPv6 else "ip"
    rules = f"""
    chain out {{
        type nat hook postrouting priority {priority}
        {ip} saddr {CLIENTS[wire.family][0]} masquerade
    }}"""
    with foreign_rules(world, "node1", rules):
        sticky.apply(*PODS)
        assert len({sticky.ask_from(CLIENTS[wire.family][0], kind, wire) for _ in range(16)}) == 1
        assert set(sticky.memory(wire)) == {CLIENTS[wire.family][0]}


@pytest.mark.contract("2.4.1")
@each_wire
def test_what_others_translate_is_not_remembered(world: World, sticky: Sticky, wire: Wire) -> None:
    """Another table sends the address elsewhere.

    That is no endpoint of ours, and when it stops, ours are chosen.
    """
    sticky.apply(*PODS)
    ip = "ip6" if wire.family is Family.IPv6 else "ip"
    address, port, protocol = sticky.at("vip", wire)
    other = world.address("pod1-3", wire.family)
    target = f"[{other}]:8080" if ":" in other else f"{other}:8080"
    rules = f"""
    chain pre {{
        type nat hook prerouting priority -110
        {ip} daddr {address} {protocol.lower()} dport {port} dnat {ip} to {target}
    }}"""
    with foreign_rules(world, "node1", rules):
        assert sticky.ask_from(CLIENTS[wire.family][0], "vip", wire) == "pod1-3"
    assert sticky.memory(wire) == {}
    assert sticky.ask_from(CLIENTS[wire.family][0], "vip", wire) in PODS


@pytest.mark.contract("5.6.3", "2.4.1")
@each_wire
def test_the_longest_names_and_many_port_numbers(world: World, sticky: Sticky, wire: Wire) -> None:
    """The kernel's names are limited.

    A Service's and its ports' are long, and its endpoints may have many port numbers.
    """
    import msgspec

    name, namespace, port_name = "s" * 63, "n" * 63, "p" * 63
    ports = [{"name": port_name, "protocol": wire.protocol, "port": 80}]
    numbers = range(20001, 20013)
    items = [sticky.service(ports=ports)]
    items += [
        piece
        for number in numbers
        for piece in sticky.slices(
            "pod1-1", "pod2-1", port=number, suffix=f"-{number}", names={port_name: wire.protocol}
        )
    ]
    documents = [msgspec.to_builtins(item) for item in items]
    for document in documents:
        document["metadata"]["namespace"] = namespace
        if "labels" in document["metadata"] and document["metadata"]["labels"]:
            document["metadata"]["labels"]["kubernetes.io/service-name"] = name
        else:
            document["metadata"]["name"] = name
    objects = [
        msgspec.convert(document, type(item))
        for document, item in zip(documents, items, strict=True)
    ]
    for pod in ("pod1-1", "pod2-1"):
        world.lab.silence(pod, numbers)
        world.lab.listen(pod, numbers, [wire.protocol], [wire.family])
    world.apply(*objects)
    try:
        first = world.ask("client", *sticky.at("cluster", wire))
        for _ in range(8):
            again = world.ask("client", *sticky.at("cluster", wire))
            assert (again.name, again.port) == (first.name, first.port)
    finally:
        world.delete(*objects)


@pytest.mark.contract("2.4.1", "2.4.5")
@pytest.mark.parametrize("wire", [WIRES[0], WIRES[3]], ids=str)
def test_a_full_memory_costs_affinity_not_service(world: World, sticky: Sticky, wire: Wire) -> None:
    """65 536 clients that nobody can tell from real ones.

    New clients are served, and old ones keep their endpoint.
    """
    sticky.apply("pod1-1", "pod2-1")
    known, *new = CLIENTS[wire.family]
    chosen = sticky.ask_from(known, "vip", wire)
    name = sticky.memory_name(wire)
    endpoints = [world.address(pod, wire.family) for pod in ("pod1-1", "pod2-1")]
    base = int(ipaddress.ip_address("100.64.0.0" if wire.family is Family.IPv4 else "fd00:100::"))
    made_up = (str(type(ipaddress.ip_address(known))(base + number)) for number in range(65535))
    for part in (
        itertools.batched(made_up, 16384)
        if hasattr(itertools, "batched")
        else _batched(made_up, 16384)
    ):
        elements = ", ".join(
            f"{client} timeout 3h : {endpoints[number % 2]}" for number, client in enumerate(part)
        )
        nft(world, "node1", f"add element inet nftproxy {name} {{ {elements} }}")
    assert len(sticky.memory(wire)) == 65536
    for client in new:
        outcome = world.connect("client", *sticky.at("vip", wire), source=client)
        assert isinstance(outcome, Answer), outcome
    assert len(sticky.memory(wire)) == 65536
    assert {sticky.ask_from(known, "vip", wire) for _ in range(8)} == {chosen}

    started = time.monotonic()
    sticky.apply("pod2-1")  # half of them have to be forgotten
    assert time.monotonic() - started < 20 * SLOW
    assert set(sticky.memory(wire).values()) == {endpoints[1]}
    assert sticky.ask_from(known, "vip", wire) == "pod2-1"


@pytest.mark.contract("2.4.1")
@pytest.mark.parametrize("family", list(Family))
def test_sctp(world: World, family: Family) -> None:
    """This kernel cannot send SCTP.

    The elements and rules are there, for this protocol and no other.
    """
    sticky = Sticky(world)
    ports = [{"name": "sctp", "protocol": "SCTP", "port": 80, "nodePort": sticky.node_port}]
    world.apply(
        sticky.service(ports=ports, externalTrafficPolicy="Local"),
        *sticky.slices(*PODS, names={"sctp": "SCTP"}),
    )
    table, v = world.tables["node1"], family.digit
    key: Key = (sticky.address("cluster", family), "sctp", 80)
    for where, expected in (
        (f"services{v}", f"goto sticky-pick{v}-sctp-{len(PODS)}-8080-"),
        (f"learn{v}", f"goto learn_both{v}-10800-8080-"),
    ):
        value: Value = table.kernel.elements(where)[key]
        assert str(value) == f"{expected}default/{sticky.name}/sctp/sctp"
        chain = str(value).split()[1]
        rules = [
            item["rule"]["expr"]
            for item in listing(world, "node1", f"chain inet nftproxy {chain}")
            if "rule" in item
        ]
        assert rules
        assert all("sctp" in str(rule) for rule in rules if "@new_clients" not in str(rule))
        assert not any(
            "tcp'" in str(rule).replace("sctp", "") or "udp" in str(rule) for rule in rules
        )
    looked_up = listing(world, "node1", f"chain inet nftproxy remember{v}")
    rights = [
        str(item["rule"]["expr"][0]["match"]["right"]) for item in looked_up if "rule" in item
    ]
    by_protocol = [right for right in rights if right in PROTOCOLS]
    assert by_protocol == ["tcp", "udp", "sctp"] * 2, "by address, then by NodePort"


def _batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
