"""Every address of a Service, from everywhere.

Who answers, and which source it sees (contract 2.1, 2.2, 4.1; Appendix B 4, 6).
"""

import msgspec
import pytest
from loguru import logger
from msgspec import structs

from nftproxy.lab.client import Answer, Refused
from nftproxy.model import Labels, Service, ServiceStatus
from tests.support.frontends import (
    EXTERNAL,
    SILENCE,
    Kind,
    Web,
    Wire,
    each_external,
    each_kind,
    each_wire,
    foreign_rules,
    listing,
    masked,
    passes,
    reading,
    route_outside,
)
from tests.support.world import World

PODS = ("pod1-1", "pod1-2", "pod2-1")


@pytest.fixture(scope="module")
def web(world: World) -> Web:
    web = Web(world)
    web.apply(*PODS)
    return web


def expected_source(world: World, where: str, kind: Kind, answer: Answer, wire: Wire) -> str:
    """Return the source that the endpoint sees with a CIDR detector and eTP Cluster (contract 4.1).

    All these sources enter at node1 but pod2-2.
    """
    entry = "node2" if where == "pod2-2" and kind != "nodeport" else "node1"
    hairpin = where == answer.name
    if hairpin or kind in EXTERNAL or not where.startswith("pod"):
        return masked(world, entry, answer.name, wire.family)
    return world.address(where, wire.family)


@pytest.mark.contract(
    "2.2", "2.2.1", "2.3.3", "2.3.5", "2.3.6", "3.4.1", "3.4.9", "4.1.2", "4.1.3", "4.1.5", "4.1.6"
)
@each_wire
@each_kind
@pytest.mark.parametrize("where", ["pod1-1", "pod1-3", "pod2-2", "node1", "client"])
def test_every_frontend_reaches_every_endpoint(
    world: World, web: Web, wire: Wire, kind: Kind, where: str
) -> None:
    answers = [world.ask(where, *web.at(kind, wire)) for _ in range(48)]
    assert {answer.name for answer in answers} == set(PODS)
    assert {answer.port for answer in answers} == {8080}
    for answer in answers:
        assert answer.source == expected_source(world, where, kind, answer, wire), answer


@pytest.mark.contract("2.2.2")
@each_wire
@pytest.mark.parametrize("kind", ["external", "vip"])
def test_another_port_of_an_external_address_is_not_touched(
    world: World, web: Web, wire: Wire, kind: Kind
) -> None:
    address, _, protocol = web.at(kind, wire)
    to = "ip6 daddr" if ":" in address else "ip daddr"
    rules = f"""
    counter untouched {{ }}
    chain forward {{ type filter hook forward priority 300; {to} {address} {protocol.lower()} dport 81 counter name untouched; }}"""  # noqa: E501
    with foreign_rules(world, "node1", rules):
        outcome = world.connect("client", address, 81, protocol, timeout=SILENCE)
        assert not isinstance(outcome, Answer)
        assert passes(world, "node1", "untouched")


@pytest.mark.contract("2.2.2", "2.6.9")
@each_wire
def test_another_port_of_a_node_is_its_own(world: World, web: Web, wire: Wire) -> None:
    port = web.node_port + 1000
    address, _, protocol = web.at("nodeport", wire)
    assert world.connect("client", address, port, protocol) == Refused()
    world.lab.listen("node1", [port], [protocol], [wire.family])
    assert world.ask("client", address, port, protocol).name == "node1"
    assert world.ask("pod1-1", address, port, protocol).name == "node1"


@pytest.mark.contract("2.2.2", "2.5.6")
@each_wire
@pytest.mark.parametrize("where", ["pod1-1", "node1", "client"])
def test_another_port_of_a_cluster_ip_is_refused(
    world: World, web: Web, wire: Wire, where: str
) -> None:
    address, _, protocol = web.at("cluster", wire)
    assert world.connect(where, address, 81, protocol) == Refused()


@pytest.mark.contract("2.1.4", "3.1.4")
@each_wire
def test_the_same_number_may_be_another_port_in_each_protocol(world: World, wire: Wire) -> None:
    web = Web(world)
    tcp = web.slices("pod1-1", port=8080, names={"tcp": "TCP"}, suffix="-tcp")
    udp = web.slices("pod2-1", port=9376, names={"udp": "UDP"}, suffix="-udp")
    world.apply(web.service(), *tcp, *udp)
    answer = world.ask("pod1-2", *web.at("cluster", wire))
    assert (answer.name, answer.port) == (
        ("pod1-1", 8080) if wire.protocol == "TCP" else ("pod2-1", 9376)
    )


@pytest.mark.contract("2.1.4", "3.1.4")
@each_wire
def test_each_port_of_a_service_has_endpoints_of_its_own(world: World, wire: Wire) -> None:
    web = Web(world)
    one = {"protocol": wire.protocol, "nodePort": 0}
    ports = [{**one, "name": "a", "port": 80}, {**one, "name": "b", "port": 81}]
    a = web.slices("pod1-1", port=8080, names={"a": wire.protocol}, suffix="-a")
    b = web.slices("pod1-1", port=9376, names={"b": wire.protocol}, suffix="-b")
    world.apply(web.service(ports=ports), *a, *b)
    address, _, protocol = web.at("cluster", wire)
    assert world.ask("pod1-2", address, 80, protocol).port == 8080
    assert world.ask("pod1-2", address, 81, protocol).port == 9376


@pytest.mark.contract("2.1.2", "2.1.5")
@each_wire
def test_addresses_in_other_spellings(world: World, wire: Wire) -> None:
    web = Web(world)
    spelled = []
    for family in world.lab.families:
        text = web.address("cluster", family)
        if ":" in text:
            spelled.append(text.replace("fd00:10:96::", "FD00:0010:096:0:0:0:0:"))
        else:
            spelled.append(".".join(f"{int(octet):03}" for octet in text.split(".")))
    world.apply(web.service(cluster_ip=spelled), *web.slices("pod2-1"))
    assert world.ask("pod1-1", *web.at("cluster", wire)).name == "pod2-1"


@pytest.mark.contract("2.1.2")
@each_wire
def test_a_single_stack_service_is_nothing_in_the_other_family(world: World, wire: Wire) -> None:
    web = Web(world)
    here = web.address("cluster", wire.family)
    world.apply(web.service(cluster_ip=[here]), *web.slices("pod2-1"))
    assert world.ask("pod1-1", *web.at("cluster", wire)).name == "pod2-1"
    other = next(f for f in world.lab.families if f is not wire.family)
    assert (web.address("cluster", other),) not in world.tables["node1"].kernel.elements(
        f"cluster_ips{other.digit}"
    )
    outcome = world.connect("client", *web.at("vip", Wire(other, wire.protocol)), timeout=SILENCE)
    assert not isinstance(outcome, Answer)


@pytest.mark.contract("2.1.1", "2.1.3", "1.1.5", "1.1.7")
@each_wire
@pytest.mark.parametrize(
    "gone",
    [
        {"type": "ExternalName"},
        {"clusterIP": "None"},
        {"clusterIP": ""},
        {"ports": []},
        {"proxy": "other"},
        {"proxy": ""},
    ],
    ids=str,
)
def test_a_service_that_becomes_none_of_ours_goes(
    world: World, wire: Wire, gone: dict[str, object]
) -> None:
    web = Web(world)
    web.apply("pod1-1")
    assert world.ask("client", *web.at("vip", wire)).name == "pod1-1"
    if "proxy" in gone:
        world.apply(_labelled(web.service(), str(gone["proxy"])))
    else:
        world.apply(web.service(**gone))
    for kind in ("cluster", *EXTERNAL):
        assert not isinstance(world.connect("client", *web.at(kind, wire), timeout=SILENCE), Answer)
    web.apply("pod1-1")
    assert world.ask("client", *web.at("vip", wire)).name == "pod1-1"


@pytest.mark.contract("2.2.1")
@each_wire
@each_external
def test_external_addresses_do_not_depend_on_the_type(world: World, wire: Wire, kind: Kind) -> None:
    web = Web(world)
    web.apply("pod1-1", type="ClusterIP")
    assert world.ask("client", *web.at(kind, wire)).name == "pod1-1"


@pytest.mark.contract("2.2.1")
@each_wire
def test_addresses_that_are_no_frontends(world: World, wire: Wire) -> None:
    """A load balancer with ipMode Proxy, one with a host name only, and blank or impossible
    external IPs are ignored.
    """
    web = Web(world)
    address = web.address("vip", wire.family)
    kept = web.address("external", wire.family)
    good = web.service(externalIPs=["", " ", "nonsense", kept])
    world.apply(
        _with_ingress(good, [{"ip": address, "ipMode": "Proxy"}, {"hostname": "lb.example"}]),
        *web.slices("pod1-1"),
    )
    assert not isinstance(world.connect("client", *web.at("vip", wire), timeout=SILENCE), Answer)
    assert world.ask("client", *web.at("external", wire)).name == "pod1-1"
    world.apply(_with_ingress(good, [{"ip": address}]))
    assert world.ask("client", *web.at("vip", wire)).name == "pod1-1"


@pytest.mark.contract("2.2.1")
@each_wire
def test_without_the_gate_external_ips_are_ignored(wire: Wire) -> None:
    with World(
        lab={"nodes": 1, "pods": 1, "families": [wire.family]}, allow_external_ips=False
    ) as world:
        route_outside(world)
        web = Web(world)
        web.apply("pod1-1")
        assert not isinstance(
            world.connect("client", *web.at("external", wire), timeout=SILENCE), Answer
        )
        assert world.ask("client", *web.at("vip", wire)).name == "pod1-1"


@pytest.mark.contract("2.2.1")
@each_wire
@each_kind
def test_services_may_share_an_address(world: World, wire: Wire, kind: Kind) -> None:
    """Two Services with the same external address and different ports."""
    first, second = Web(world), Web(world)
    second.port = 8443
    if kind not in ("cluster", "nodeport"):
        second._addresses[kind] = first._addresses[kind]
    first.apply("pod1-1")
    second.apply("pod2-1")
    assert world.ask("client", *first.at(kind, wire)).name == "pod1-1"
    assert world.ask("client", *second.at(kind, wire)).name == "pod2-1"
    world.delete(first.service())
    assert world.ask("client", *second.at(kind, wire)).name == "pod2-1"


@pytest.mark.contract("2.2.3")
@each_wire
@each_external
@pytest.mark.parametrize("order", ["older first", "younger first"])
def test_of_two_that_claim_a_frontend_the_older_has_it(
    world: World, wire: Wire, kind: Kind, order: str
) -> None:
    older, younger = Web(world), Web(world)
    younger._addresses[kind if kind != "nodeport" else "vip"] = older._addresses[
        kind if kind != "nodeport" else "vip"
    ]
    younger.node_port = older.node_port if kind == "nodeport" else younger.node_port
    claims = [
        (older.service(created="2026-01-01T00:00:00Z"), older.slices("pod1-1")),
        (younger.service(created="2026-01-02T00:00:00Z"), younger.slices("pod2-1")),
    ]
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="ERROR")
    try:
        for one, slices in claims if order == "older first" else reversed(claims):
            world.apply(one, *slices)
    finally:
        logger.remove(sink)
    assert any(older.name in line and younger.name in line for line in lines), lines
    assert set(world.answers("client", *older.at(kind, wire))) == {"pod1-1"}
    world.delete(older.service())
    assert set(world.answers("client", *older.at(kind, wire))) == {"pod2-1"}
    world.apply(older.service(created="2026-01-01T00:00:00Z"))
    assert set(world.answers("client", *older.at(kind, wire))) == {"pod1-1"}
    world.delete(younger.service())
    assert set(world.answers("client", *older.at(kind, wire))) == {"pod1-1"}


@pytest.mark.contract("2.2.3")
@each_wire
def test_a_cluster_ip_stays_its_services_though_an_older_one_claims_it(
    world: World, wire: Wire
) -> None:
    older, younger = Web(world), Web(world)
    older._addresses["external"] = younger._addresses["cluster"]
    world.apply(older.service(created="2026-01-01T00:00:00Z"), *older.slices("pod1-1"))
    assert set(world.answers("pod1-2", *younger.at("cluster", wire))) == {"pod1-1"}
    world.apply(younger.service(created="2026-01-02T00:00:00Z"), *younger.slices("pod2-1"))
    assert set(world.answers("pod1-2", *younger.at("cluster", wire))) == {"pod2-1"}
    world.delete(younger.service())
    assert set(world.answers("pod1-2", *younger.at("cluster", wire))) == {"pod1-1"}


@pytest.mark.contract("2.1.4", "5.3.2")
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_sctp_has_elements_and_rules_of_its_own(world: World, family: str) -> None:
    """This kernel cannot send SCTP; what packets would meet is read back."""
    web = Web(world)
    wire = next(Wire(f, "SCTP") for f in world.lab.families if f == family)
    v = wire.family.digit
    ports = [{"name": "sctp", "protocol": "SCTP", "port": 80, "nodePort": web.node_port}]
    slices = web.slices("pod1-1", "pod2-1", names={"sctp": "SCTP"})
    world.apply(web.service(ports=ports, externalTrafficPolicy="Local"), *slices)
    kernel = world.tables["node1"].kernel
    expected = {
        f"services{v}": (web.address("cluster", wire.family), "sctp", 80, f"goto pick{v}-sctp-2"),
        f"nodeport_services{v}": ("sctp", web.node_port, f"goto nodeport-preserve{v}-sctp-2-1"),
    }
    for where, (*key, verdict) in expected.items():
        assert str(kernel.elements(where)[tuple(key)]) == verdict
    pods = {(web.world.address(pod, wire.family), 8080) for pod in ("pod1-1", "pod2-1")}
    slots = kernel.elements(f"endpoints{v}-sctp")
    assert {slots[web.address("cluster", wire.family), 80, slot] for slot in (0, 1)} == pods
    assert set(kernel.elements(f"nodeport_local_endpoints{v}-sctp").values()) == {
        (world.address("pod1-1", wire.family), 8080)
    }
    for chain in (
        f"pick{v}-sctp-2",
        f"nodeport-pick{v}-sctp-2",
        f"local{v}-sctp-1",
        f"nodeport-local{v}-sctp-1",
    ):
        rules = [
            item["rule"]["expr"]
            for item in listing(world, "node1", f"chain inet nftproxy {chain}")
            if "rule" in item
        ]
        assert len(rules) == 2, chain
        assert "sctp" in str(rules[0]), rules


@pytest.mark.contract("5.3.1")
def test_elements_carry_the_name_of_their_service_port(world: World) -> None:
    web = Web(world)
    web.apply()
    with reading(world, "node1") as reader:
        found = {element.key: element.value for element, _ in reader.counted("no_endpoints4")}
    wire = Wire(world.lab.families[0], "UDP")
    value = found[web.address("cluster", wire.family), "udp", 80]
    assert value.comment == f"default/{web.name}:udp"  # type: ignore[union-attr]


def _labelled(item: Service, proxy_name: str) -> Service:
    labels = Labels(proxy_name=proxy_name)
    return structs.replace(item, metadata=structs.replace(item.metadata, labels=labels))


def _with_ingress(item: Service, ingress: list[dict[str, str]]) -> Service:
    return structs.replace(
        item, status=msgspec.convert({"loadBalancer": {"ingress": ingress}}, ServiceStatus)
    )
