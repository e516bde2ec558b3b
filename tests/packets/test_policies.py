"""Internal and external traffic policy, by source, with packets (contract 2.3; Appendix B 6)."""

from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.lab.client import Connection
from tests.support.frontends import (
    SILENCE,
    WIRES,
    Kind,
    Ready,
    Web,
    Wire,
    add_address,
    each_external,
    each_kind,
    each_wire,
    foreign_rules,
    masked,
    passes,
)
from tests.support.world import World

PODS = ("pod1-1", "pod1-2", "pod2-1")
EXTRA = {Family.IPv4: "192.168.77.1", Family.IPv6: "fd00:77::1"}  # a second address of node1
LOCAL = {"pod1-1", "pod1-2"}
REMOTE_ONLY = ("pod2-1", "pod2-2")


@pytest.fixture(scope="module")
def internal(world: World) -> Web:
    """Internal policy Local, endpoints on both nodes."""
    web = Web(world)
    web.apply(*PODS, internalTrafficPolicy="Local")
    return web


@pytest.fixture(scope="module")
def external(world: World) -> Web:
    """External policy Local, endpoints on both nodes."""
    web = Web(world)
    web.apply(*PODS, externalTrafficPolicy="Local")
    return web


@pytest.fixture(scope="module")
def remote(world: World) -> Web:
    """External policy Local, no endpoint on node1."""
    web = Web(world)
    web.apply(*REMOTE_ONLY, externalTrafficPolicy="Local")
    return web


@pytest.fixture(scope="module")
def internal_remote(world: World) -> Web:
    """Internal policy Local, no endpoint on node1."""
    web = Web(world)
    web.apply(*REMOTE_ONLY, internalTrafficPolicy="Local")
    return web


@pytest.mark.contract("2.3.1", "2.3.4", "2.3.5", "3.4.3", "4.1.6")
@each_wire
@pytest.mark.parametrize(
    ("where", "answering"),
    [
        ("pod1-3", LOCAL),
        ("pod1-1", LOCAL),
        ("node1", LOCAL),
        ("client", LOCAL),
        ("pod2-2", {"pod2-1"}),
        ("node2", {"pod2-1"}),
    ],
)
def test_internal_local_stays_on_the_node(
    internal: Web, wire: Wire, where: str, answering: set[str]
) -> None:
    assert internal.answers(where, "cluster", wire) == answering


@pytest.mark.contract("2.3.1", "2.3.6")
@each_wire
@each_external
@pytest.mark.parametrize("where", ["pod1-3", "node1", "client"])
def test_internal_local_is_nothing_to_external_addresses(
    internal: Web, wire: Wire, kind: Kind, where: str
) -> None:
    assert internal.answers(where, kind, wire) == set(PODS)


@pytest.mark.contract("2.3.5", "2.5.2")
@each_wire
@pytest.mark.parametrize("where", ["pod1-1", "node1", "client"])
def test_internal_local_without_local_endpoints_is_dropped(
    internal_remote: Web, wire: Wire, where: str
) -> None:
    internal_remote.assert_dropped(where, "cluster", wire)
    assert internal_remote.answers("pod2-3", "cluster", wire) == set(REMOTE_ONLY)


@pytest.mark.contract("2.3.2", "2.3.5")
@each_wire
@pytest.mark.parametrize("where", ["pod1-3", "node1", "client"])
def test_external_local_is_nothing_to_the_cluster_ip(external: Web, wire: Wire, where: str) -> None:
    assert external.answers(where, "cluster", wire) == set(PODS)


@pytest.mark.contract("2.3.2", "2.3.4", "2.3.7", "4.1.4", "4.1.6")
@each_wire
@each_external
@pytest.mark.parametrize(
    ("where", "answering", "source"),
    [
        ("pod1-3", set(PODS), "its own"),
        ("node1", set(PODS), "masked"),
        ("client", LOCAL, "its own"),
    ],
)
def test_external_local(
    world: World,
    external: Web,
    wire: Wire,
    kind: Kind,
    where: str,
    answering: set[str],
    source: str,
) -> None:
    answers = [world.ask(where, *external.at(kind, wire)) for _ in range(48)]
    assert {answer.name for answer in answers} == answering
    for answer in answers:
        own = world.address(where, wire.family)
        assert answer.source == (
            own if source == "its own" else masked(world, "node1", answer.name, wire.family)
        ), answer


@pytest.mark.contract("2.3.7", "2.3.9", "4.1.6")
@each_wire
def test_external_local_a_pod_of_another_node_is_a_pod(world: World, wire: Wire) -> None:
    """With the cluster's CIDR as the detector.

    The cluster list, though the endpoint will answer past node1.
    """
    web = Web(world)
    web.apply("pod2-1", externalTrafficPolicy="Local")
    family, protocol = wire
    ip, source, destination = (
        "ip6" if family is Family.IPv6 else "ip",
        *(world.address(p, family) for p in ("pod2-2", "pod2-1")),
    )
    rules = f"""
    counter passed {{ }}
    chain out {{
        type filter hook postrouting priority 300
        {ip} saddr {source} {ip} daddr {destination} {protocol.lower()} dport 8080 counter name passed
    }}"""  # noqa: E501
    with foreign_rules(world, "node1", rules):
        world.connect("pod2-2", *web.at("nodeport", wire), timeout=SILENCE)
        assert passes(world, "node1", "passed")


@pytest.mark.contract("2.3.7")
@each_wire
def test_external_local_another_node_is_an_outside_client(
    world: World, external: Web, wire: Wire
) -> None:
    """Only this node's own addresses are its own (rule 2)."""
    answers = [world.ask("node2", *external.at("nodeport", wire)) for _ in range(48)]
    assert {answer.name for answer in answers} == LOCAL
    assert {answer.source for answer in answers} == {world.address("node2", wire.family)}


@pytest.mark.contract("2.3.7")
@each_wire
@each_external
def test_external_local_every_address_of_the_node_is_its_own(
    world: World, external: Web, wire: Wire, kind: Kind
) -> None:
    source = EXTRA[wire.family]
    add_address(world, "node1", source)
    answers = [world.ask("node1", *external.at(kind, wire), source=source) for _ in range(48)]
    assert {answer.name for answer in answers} == set(PODS)
    for answer in answers:
        assert answer.source == masked(world, "node1", answer.name, wire.family)


@pytest.mark.contract("2.3.8", "2.5.2", "3.4.6")
@each_wire
@each_external
def test_external_local_without_local_endpoints(
    world: World, remote: Web, wire: Wire, kind: Kind
) -> None:
    """Pods and the node still reach all endpoints, everybody else meets silence."""
    for where in ("pod1-1", "node1"):
        answers = [world.ask(where, *remote.at(kind, wire)) for _ in range(48)]
        assert {answer.name for answer in answers} == set(REMOTE_ONLY)
        # Of the node: it goes out by eth0
        assert {answer.source for answer in answers} == {world.address(where, wire.family)}
    remote.assert_dropped("client", kind, wire)


@pytest.mark.contract("2.3.2")
@each_wire
@each_external
@pytest.mark.parametrize(
    ("counts", "spec"),
    [
        (True, {"type": "LoadBalancer"}),
        (True, {"type": "NodePort"}),
        (True, {"type": "LoadBalancer", "externalIPs": []}),
        (True, {"type": "ClusterIP"}),
        (False, {"type": "ClusterIP", "externalIPs": []}),
    ],
    ids=str,
)
def test_where_the_external_policy_counts(
    world: World, wire: Wire, kind: Kind, counts: bool, spec: dict[str, Any]
) -> None:
    if kind == "external" and not spec.get("externalIPs", True):
        return
    web = Web(world)
    web.apply("pod1-1", "pod2-1", externalTrafficPolicy="Local", **spec)
    assert web.answers("client", kind, wire) == ({"pod1-1"} if counts else {"pod1-1", "pod2-1"})


TERMINATING = {"ready": False, "serving": True, "terminating": True}


@pytest.mark.contract("3.4.4", "3.4.5", "4.1.6")
@each_wire
@each_external
def test_each_list_falls_back_by_itself(world: World, wire: Wire, kind: Kind) -> None:
    web = Web(world)
    web.apply(("pod1-1", TERMINATING), "pod2-1", externalTrafficPolicy="Local")
    assert web.answers("client", "cluster", wire) == {"pod2-1"}
    assert web.answers("pod1-2", kind, wire) == {"pod2-1"}
    answer = world.ask("client", *web.at(kind, wire))
    assert (answer.name, answer.source) == ("pod1-1", world.address("client", wire.family))


@pytest.mark.contract("2.3.4", "2.3.7")
@each_wire
@each_external
def test_both_policies_local(world: World, wire: Wire, kind: Kind) -> None:
    web = Web(world)
    web.apply(*PODS, externalTrafficPolicy="Local", internalTrafficPolicy="Local")
    assert web.answers("pod1-3", "cluster", wire) == LOCAL
    assert web.answers("pod1-3", kind, wire) == set(PODS)
    assert web.answers("node1", kind, wire) == set(PODS)
    assert web.answers("client", kind, wire) == LOCAL


STATES: dict[str, tuple[tuple[Ready, ...], dict[str, Any]]] = {
    "cluster": (PODS, {}),
    "external local": (PODS, {"externalTrafficPolicy": "Local"}),
    "internal local": (PODS, {"internalTrafficPolicy": "Local"}),
    "both local": (PODS, {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}),
    "external local, none here": (REMOTE_ONLY, {"externalTrafficPolicy": "Local"}),
    "internal local, none here": (REMOTE_ONLY, {"internalTrafficPolicy": "Local"}),
    "no endpoints": ((), {}),
    "affinity": (PODS, {"sessionAffinity": "ClientIP"}),
    "gone": (("pod2-2",), {}),
}


@pytest.mark.contract("2.9.1", "2.5.3")
@each_wire
@each_kind
def test_established_connections_outlive_every_change(world: World, wire: Wire, kind: Kind) -> None:
    """Through policy, endpoint and affinity changes, from a pod, the node and outside.

    Also when the Service goes.
    """
    web = Web(world)
    web.apply(*PODS)
    opened = []
    for where in ("pod1-1", "pod1-3", "node1", "client"):
        connection = world.lab.open_connection(where, *web.at(kind, wire))
        assert isinstance(connection, Connection)
        opened.append(connection)
    try:
        for state, (places, spec) in STATES.items():
            web.apply(*places, **spec)
            for connection in opened:
                assert connection.again() == connection.answer, state
        world.delete(web.service())
        for connection in opened:
            assert connection.again() == connection.answer
    finally:
        for connection in opened:
            connection.close()


@pytest.mark.contract("2.3.5", "2.3.6", "2.3.7")
@pytest.mark.parametrize("before", STATES)
def test_from_any_state_to_any_other(world: World, before: str) -> None:
    """What a client meets depends on the state alone, not on what was before."""
    web = Web(world)
    for after in ("cluster", "external local", "internal local", "both local"):
        for state in (before, after):
            web.apply(*STATES[state][0], **STATES[state][1])
        for wire in WIRES:
            at_vip = LOCAL if after in {"external local", "both local"} else set(PODS)
            at_cluster_ip = LOCAL if after in {"internal local", "both local"} else set(PODS)
            assert web.answers("client", "vip", wire) == at_vip, (after, wire)
            assert web.answers("client", "cluster", wire) == at_cluster_ip, (after, wire)
