"""ClientIP affinity for a whole Service, with packets: one endpoint for all of its ports."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.annotations import AFFINITY_SCOPE
from nftproxy.model import EndpointSlice
from nftproxy.sync.report import Report
from tests.support.frontends import KINDS, WIRES, Kind, Ready, Web, add_address
from tests.support.world import World

PODS = ("pod1-1", "pod1-2", "pod2-1")
# So many that none of three endpoints is missed by chance: 7 in a million
CLIENTS = {
    Family.IPv4: [f"192.168.98.{n}" for n in range(1, 33)],
    Family.IPv6: [f"fd00:98::{n}" for n in range(1, 33)],
}
SERVICE = {AFFINITY_SCOPE: "service"}
LOCAL = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}
PORTS: Mapping[str, tuple[str, int, int]] = {  # protocol, port, endpoints' port number
    "a": ("TCP", 80, 8080),
    "b": ("TCP", 81, 9376),
    "c": ("UDP", 80, 8080),
}
each_family = pytest.mark.parametrize("family", list(Family))


@pytest.fixture(scope="module")
def world(world: World) -> World:
    for family, cidr in ((Family.IPv4, "192.168.98.0/24"), (Family.IPv6, "fd00:98::/64")):
        for address in CLIENTS[family]:
            add_address(world, "client", address)
        for node in ("node1", "node2"):
            world.lab.route(node, cidr, "client")
    return world


class Whole(Web):
    """A Service with several ports that share what they remember."""

    def __init__(self, world: World, family: Family) -> None:
        super().__init__(world, next(wire for wire in WIRES if wire.family is family))
        self.family = family

    def spec(self, ports: str = "abc", **more: Any) -> dict[str, Any]:
        return {
            "sessionAffinity": "ClientIP",
            "annotations": SERVICE,
            "ports": [
                {
                    "name": name,
                    "protocol": PORTS[name][0],
                    "port": PORTS[name][1],
                    "nodePort": self.node_port + 1000 * number,
                }
                for number, name in enumerate(ports)
            ],
            **more,
        }

    def piece(
        self, *places: Ready, numbers: Mapping[str, int] | None = None, suffix: str = ""
    ) -> EndpointSlice:
        """A slice whose endpoints have these port numbers, those of `PORTS` by default."""
        import msgspec

        from nftproxy.model import Proto, SlicePort

        (made,) = self.slices(*places, suffix=suffix)
        numbers = {name: port for name, (_, _, port) in PORTS.items()} | dict(numbers or {})
        ports = tuple(
            SlicePort(name=name, port=port, protocol=Proto(PORTS[name][0]))
            for name, port in numbers.items()
            if port
        )
        return msgspec.structs.replace(made, ports=ports)

    def give(self, *pieces: EndpointSlice, **spec: Any) -> list[Report]:
        return self.world.apply(self.service(**self.spec(**spec)), *pieces)

    def ask_at(self, name: str, source: str, kind: Kind = "cluster") -> tuple[str, int]:
        """Who answers a client at a port, and at which port number."""
        protocol, port, _ = PORTS[name]
        if kind == "nodeport":
            port = self.node_port + 1000 * "abc".index(name)
        address = self.address(kind, self.family)
        answer = self.world.ask("client", address, port, protocol, source=source)
        return answer.name, answer.port

    def ask_all(self, name: str, kind: Kind = "cluster") -> dict[str, str]:
        """Who answers each client at a port."""
        return {source: self.ask_at(name, source, kind)[0] for source in CLIENTS[self.family]}

    def remembered(self, which: str = "service_affinity") -> dict[str, str]:
        """Who is remembered on node1, in all groups, and for which pod."""
        kernel = self.world.tables["node1"].kernel
        pods = {pod.addresses[self.family]: pod.name for pod in self.world.lab.pods}
        return {
            str(key[0]): pods[str(value)]
            for name in sorted(kernel.sets)
            if name.startswith(f"{which}{self.family.digit}-default/{self.name}-")
            for key, value in kernel.elements(name).items()
        }


@pytest.fixture
def whole(world: World, family: Family) -> Iterator[Whole]:
    made = Whole(world, family)
    yield made
    made.delete()


@each_family
@pytest.mark.parametrize("spec", [{}, LOCAL], ids=["Cluster", "Local"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_has_one_endpoint_for_all_ports(
    whole: Whole, kind: Kind, spec: dict[str, Any]
) -> None:
    """TCP and UDP alike, whichever port it asked first."""
    whole.give(whole.piece(*PODS), **spec)
    first = whole.ask_all("a", kind)
    usable = {"pod1-1", "pod1-2"} if spec else set(PODS)
    assert set(first.values()) <= usable
    assert len(set(first.values())) > 1
    for name in "bca":
        assert whole.ask_all(name, kind) == first
    for other in KINDS:
        assert whole.ask_all("c", other) == first
    memory = "local_service_affinity" if spec else "service_affinity"
    assert whole.remembered(memory) == first


@each_family
def test_a_pod_and_the_node_as_clients(world: World, whole: Whole, family: Family) -> None:
    whole.give(whole.piece(*PODS))
    for where in ("pod1-1", "pod1-3", "node1"):
        answers = {
            world.ask(where, whole.address("cluster", family), port, protocol).name
            for protocol, port, _ in [*PORTS.values()] * 6
        }
        assert len(answers) == 1


@pytest.mark.contract("2.4.5")
@each_family
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_a_service_that_comes_back_knows_nobody(
    world: World, whole: Whole, family: Family, restarted: bool
) -> None:
    """Its memory is still there, because it is deleted some seconds after the Service."""
    whole.give(whole.piece(*PODS))
    client = CLIENTS[family][0]
    whole.ask_at("a", client)
    world.delete(whole.service())
    assert set(whole.remembered()) == {client}
    if restarted:
        world.start("node1")
    whole.give(whole.piece(*PODS))
    assert whole.remembered() == {}
    chosen, _ = whole.ask_at("b", client)
    assert whole.remembered() == {client: chosen}


@each_family
def test_the_other_lists_memory_is_another(whole: Whole) -> None:
    """By ClusterIP any endpoint, by load balancer one on this node: one for each, at all ports."""
    whole.give(whole.piece(*PODS), externalTrafficPolicy="Local")
    everywhere, here = whole.ask_all("a", "cluster"), whole.ask_all("a", "vip")
    assert set(here.values()) <= {"pod1-1", "pod1-2"}
    for name in "bc":
        assert whole.ask_all(name, "cluster") == everywhere
        assert whole.ask_all(name, "nodeport") == here


@each_family
def test_pods_with_other_port_numbers(whole: Whole) -> None:
    """Named target ports: each endpoint is asked at its own number for the port."""
    other = {"a": 9376, "b": 8080, "c": 9376}
    whole.give(
        whole.piece("pod1-1", "pod1-2"), whole.piece("pod2-1", numbers=other, suffix="-other")
    )
    first = whole.ask_all("a")
    assert set(first.values()) == set(PODS)
    for name in "abc":
        for source, pod in first.items():
            number = other[name] if pod == "pod2-1" else PORTS[name][2]
            assert whole.ask_at(name, source) == (pod, number)


@each_family
def test_an_endpoint_that_one_port_has_alone(whole: Whole) -> None:
    """Its clients get another endpoint for the other ports, and keep it for this one."""
    whole.give(
        whole.piece("pod1-1", "pod1-2"),
        whole.piece("pod2-1", numbers={"b": 0, "c": 0}, suffix="-a"),
    )
    at_a = whole.ask_all("a")
    assert set(at_a.values()) == set(PODS)
    at_b = whole.ask_all("b")
    assert set(at_b.values()) <= {"pod1-1", "pod1-2"}
    for source, pod in at_a.items():
        if pod != "pod2-1":
            assert at_b[source] == pod
    for _ in range(2):
        assert whole.ask_all("c") == at_b
        assert whole.ask_all("a") == at_a


@each_family
def test_an_endpoint_that_loses_one_port_and_gets_it_back(whole: Whole) -> None:
    """What the other ports remember stays, and it is found again at the port when it is back."""
    whole.give(whole.piece(*PODS))
    before = whole.ask_all("a")
    moved = {source for source, pod in before.items() if pod == "pod2-1"}
    assert moved
    there = whole.piece("pod1-1", "pod1-2")
    whole.give(there, whole.piece("pod2-1", numbers={"b": 0}, suffix="-a"))
    assert whole.remembered() == before
    assert whole.ask_all("a") == whole.ask_all("c") == before
    whole.give(whole.piece(*PODS), whole.piece(suffix="-a"))
    assert whole.ask_all("b") == before
    whole.give(there, whole.piece("pod2-1", numbers={"b": 0}, suffix="-a"))
    at_b = whole.ask_all("b")
    assert "pod2-1" not in at_b.values()
    assert {s: at_b[s] for s in before if s not in moved} == {
        s: before[s] for s in before if s not in moved
    }
    assert whole.ask_all("a") == before


@each_family
def test_an_endpoint_that_is_gone_is_forgotten_at_all_ports(whole: Whole) -> None:
    whole.give(whole.piece(*PODS))
    before = whole.ask_all("a")
    whole.give(whole.piece("pod1-1", "pod1-2"))
    assert "pod2-1" not in whole.remembered().values()
    after = whole.ask_all("b")
    assert "pod2-1" not in after.values()
    assert {s: e for s, e in before.items() if e != "pod2-1"}.items() <= after.items()
    whole.give(whole.piece(*PODS))
    for name in "cab":
        assert whole.ask_all(name) == after


@each_family
@pytest.mark.parametrize("back", [False, True], ids=["added", "added and removed"])
def test_a_port_that_is_added(whole: Whole, *, back: bool) -> None:
    """Clients stay, at the old ports and at the new one."""
    whole.give(whole.piece(*PODS, numbers={"c": 0}), ports="ab")
    before = whole.ask_all("a")
    whole.give(whole.piece(*PODS), ports="abc")
    for name in "cba":
        assert whole.ask_all(name) == before
    if back:
        whole.give(whole.piece(*PODS, numbers={"c": 0}), ports="ab")
        assert whole.ask_all("b") == before


@each_family
def test_another_port_number_is_another_endpoint_for_that_port_alone(whole: Whole) -> None:
    whole.give(whole.piece(*PODS))
    before = whole.ask_all("a")
    whole.give(whole.piece(*PODS, numbers={"b": 8080}))
    assert whole.ask_all("a") == before
    assert {whole.ask_at("b", source) for source in before} <= {(pod, 8080) for pod in PODS}
    assert whole.ask_all("b") == before


@each_family
def test_a_changed_timeout(world: World, whole: Whole) -> None:
    def config(seconds: int) -> dict[str, Any]:
        return {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}

    whole.give(whole.piece(*PODS), **config(10800))
    before = whole.ask_all("a")
    whole.give(whole.piece(*PODS), **config(500))
    assert whole.remembered() == before
    assert whole.ask_all("c") == before
    start = f"learn_service{whole.family.digit}-500-"
    chains = world.tables["node1"].kernel.chains
    assert [n for n in chains if n.startswith(start) and n.endswith(f"-default/{whole.name}")]


@each_family
def test_switched_on_and_off_while_clients_connect(world: World, whole: Whole) -> None:
    """Every step answers; whoever is remembered then is remembered for that scope."""
    wire = whole.piece(*PODS)
    for annotations in (SERVICE, {}, SERVICE, {AFFINITY_SCOPE: "port"}):
        whole.give(wire, annotations=annotations)
        at_a, at_b = whole.ask_all("a"), whole.ask_all("b")
        assert (at_a == at_b) is (annotations == SERVICE)
        assert whole.ask_all("a") == at_a
        assert whole.ask_all("b") == at_b
    world.tables["node1"].tidy()
    whole.give(whole.piece("pod1-1", "pod2-1"), annotations=SERVICE)
    at_a = whole.ask_all("a")
    assert set(at_a.values()) <= {"pod1-1", "pod2-1"}
    assert whole.ask_all("c") == at_a


@each_family
def test_what_was_remembered_before_a_switch_leads_to_no_gone_endpoint(whole: Whole) -> None:
    """Neither that of the ports nor that of the Service, which are kept until a quiet moment."""
    for annotations in ({}, SERVICE):
        other = SERVICE if not annotations else {}
        whole.give(whole.piece(*PODS), annotations=annotations)
        for name in "abc":
            whole.ask_all(name)
        whole.give(whole.piece(*PODS), annotations=other)
        whole.give(whole.piece("pod1-1"), annotations=other)
        whole.give(whole.piece("pod1-1", "pod1-2"), annotations=annotations)
        for name in "abc":
            assert set(whole.ask_all(name).values()) <= {"pod1-1", "pod1-2"}


@each_family
def test_an_unknown_scope_is_that_of_the_port(whole: Whole) -> None:
    whole.give(whole.piece(*PODS), annotations={AFFINITY_SCOPE: "Service; drop"})
    at_a = whole.ask_all("a")
    assert whole.ask_all("b") != at_a
    assert whole.ask_all("a") == at_a


@each_family
@pytest.mark.parametrize("changed", [False, True], ids=["nothing changed", "a port lost"])
def test_a_restart_forgets_nobody(world: World, whole: Whole, *, changed: bool) -> None:
    """A new process with nothing but the table and the objects."""
    whole.give(whole.piece(*PODS), externalTrafficPolicy="Local")
    before = {kind: whole.ask_all("a", kind) for kind in ("cluster", "vip")}
    store = world.tables["node1"].store
    if changed:
        store.put(whole.piece("pod1-1", "pod1-2"))
        store.put(whole.piece("pod2-1", numbers={"b": 0}, suffix="-a"))
    table = world.start("node1")
    table.store = store
    for syncer in table.syncers.values():
        syncer._store = store
    world.sync()
    for name in "ac" if changed else "abc":
        assert {kind: whole.ask_all(name, kind) for kind in ("cluster", "vip")} == before
    if changed:
        assert "pod2-1" not in whole.ask_all("b").values()


@each_family
def test_new_clients_are_counted_once(world: World, whole: Whole) -> None:
    """Who is known from another port is no new client of this one."""

    def new(name: str) -> int:
        protocol, port, _ = PORTS[name]
        key = f"{whole.address('cluster', whole.family)} . {protocol.lower()} . {port}"
        return world.counters("node1", f"new_clients{whole.family.digit}")[key]

    whole.give(whole.piece(*PODS))
    for name in "aba":
        whole.ask_all(name)
    assert (new("a"), new("b")) == (len(CLIENTS[whole.family]), 0)
