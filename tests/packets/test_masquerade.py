"""What is masqueraded and what is not, and endpoints that reach themselves (contract 4.1, 4.3, 4.4;
Appendix B 8).

Which source each kind of frontend shows is in test_packets_frontends, test_packets_policies and, by
detector, test_packets_detectors.
"""

import itertools
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.lab.client import Answer
from tests.support.frontends import (
    SILENCE,
    Kind,
    Web,
    Wire,
    each_external,
    each_kind,
    each_wire,
    foreign_counter,
    foreign_rules,
    masked,
    passes,
)
from tests.support.world import World

POLICIES: dict[str, dict[str, Any]] = {
    "cluster": {},
    "external local": {"externalTrafficPolicy": "Local"},
    "internal local": {"internalTrafficPolicy": "Local"},
    "affinity": {"sessionAffinity": "ClientIP"},
    "affinity, both local": {
        "sessionAffinity": "ClientIP",
        "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local",
    },
}
each_policy = pytest.mark.parametrize("spec", POLICIES.values(), ids=POLICIES)


@pytest.mark.contract("4.1.5", "4.4.1", "3.4.8", "9.11")
@each_wire
@each_kind
@each_policy
def test_a_pod_that_reaches_itself(
    world: World, wire: Wire, kind: Kind, spec: dict[str, Any]
) -> None:
    web = Web(world)
    web.apply("pod1-1", **spec)
    for _ in range(2):  # the second time affinity knows the client
        answer = world.ask("pod1-1", *web.at(kind, wire))
        assert (answer.name, answer.source) == (
            "pod1-1",
            masked(world, "node1", "pod1-1", wire.family),
        )


@pytest.mark.contract("4.4.1")
@each_wire
def test_a_pod_that_reaches_itself_while_draining(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply(
        ("pod1-1", {"ready": False, "serving": True, "terminating": True}),
        internalTrafficPolicy="Local",
    )
    assert world.ask("pod1-1", *web.at("cluster", wire)).source == masked(
        world, "node1", "pod1-1", wire.family
    )


@pytest.mark.contract("4.4.1", "4.1.6")
@each_wire
def test_a_pod_that_talks_to_itself_without_a_service(world: World, wire: Wire) -> None:
    """Only what was translated is masqueraded."""
    web = Web(world)
    web.apply("pod1-1")
    answer = world.ask("pod1-1", world.address("pod1-1", wire.family), 8080, wire.protocol)
    assert answer.source == world.address("pod1-1", wire.family)


@pytest.mark.contract("4.4.2", "3.4.8")
@pytest.mark.parametrize("family", list(Family))
def test_only_endpoints_here_are_in_the_hairpin_set(world: World, family: Family) -> None:
    """Local ones of either list, with protocol and port; out again when no list has them."""
    web = Web(world)
    here, hints = world.address("pod1-2", family), {"zones": ["far"]}
    expected = {(here, here, protocol, 9376) for protocol in ("tcp", "udp")}
    where = f"hairpin{family.digit}"

    def found() -> set[Any]:
        elements = set(world.tables["node1"].kernel.elements(where))
        assert {key[0] for key in elements} <= {
            pod.addresses[family] for pod in world.lab.pods if pod.node == "node1"
        }
        return {key for key in elements if key[3] == 9376}

    world.apply(web.service(), *web.slices("pod1-2", "pod2-1", port=9376))
    assert found() == expected
    world.apply(*web.slices(("pod1-2", {"ready": False}), "pod2-1", port=9376))
    assert found() == set()
    world.apply(
        web.service(externalTrafficPolicy="Local"),
        *web.slices(("pod1-2", hints), "pod2-1", port=9376),
    )
    assert found() == expected
    other = Web(world)
    world.apply(other.service(), *other.slices("pod1-2", port=9376))
    world.delete(web.service())
    assert found() == expected, "another service has the same endpoint"
    world.delete(other.service())
    assert found() == set()


@pytest.mark.contract("4.1.9", "9.13")
@each_wire
@each_external
def test_source_ports_are_randomised(world: World, wire: Wire, kind: Kind) -> None:
    """Each is random over tens of thousands.

    Of eight, hardly one stays as it was, and they follow no order.
    """
    web = Web(world)
    web.apply("pod1-1")
    answers = [world.ask("client", *web.at(kind, wire)) for _ in range(8)]
    assert sum(answer.source_port == answer.client_port for answer in answers) <= 1
    ports = [answer.source_port for answer in answers]
    assert max(abs(a - b) for a, b in itertools.pairwise(ports)) > 100


@pytest.mark.contract("4.1.9", "4.4.1")
@each_wire
def test_source_ports_of_hairpins_are_randomised(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod1-1")
    answers = [world.ask("pod1-1", *web.at("cluster", wire)) for _ in range(8)]
    assert sum(answer.source_port == answer.client_port for answer in answers) <= 1


@pytest.mark.contract("4.1.6")
@each_wire
@pytest.mark.parametrize(
    ("where", "to"),
    [
        ("pod1-1", "pod2-1"),
        ("pod1-1", "pod1-2"),
        ("client", "pod1-1"),
        ("node1", "pod2-1"),
        ("pod1-1", "client"),
    ],
)
def test_what_is_not_translated_is_not_masqueraded(
    world: World, wire: Wire, where: str, to: str
) -> None:
    if to == "client":
        world.lab.route(
            "client",
            {Family.IPv4: "10.244.1.0/24", Family.IPv6: "fd00:244:1::/64"}[wire.family],
            "node1",
        )
        world.lab.silence("client", [8080])
        world.lab.listen("client", [8080], [wire.protocol], [wire.family])
    answer = world.ask(where, world.address(to, wire.family), 8080, wire.protocol)
    assert answer.source == world.address(where, wire.family)


@pytest.mark.contract("4.1.8", "9.12")
@pytest.mark.parametrize("family", list(Family))
def test_the_mark_is_set_for_every_port_of_a_cluster_ip(world: World, family: Family) -> None:
    """Decided on the destination being a ClusterIP, before the port is looked at.

    And it is gone again on the way out.
    """
    web = Web(world)
    web.apply("pod1-1")
    ip = "ip6" if family is Family.IPv6 else "ip"
    address = web.address("cluster", family)
    rules = f"""
    counter marked {{ }}
    counter unmarked {{ }}
    chain forward {{
        type filter hook forward priority -1
        {ip} daddr {address} meta mark & 0x4000 == 0x4000 counter name marked
        {ip} daddr {address} meta mark & 0x4000 == 0 counter name unmarked
    }}"""
    with foreign_rules(world, "node1", rules):
        world.connect("client", address, 81, "UDP", timeout=SILENCE)
        world.connect("pod1-1", address, 81, "UDP", timeout=SILENCE)
        assert passes(world, "node1", "marked")
        assert passes(world, "node1", "unmarked")


@pytest.mark.contract("4.3.1", "4.3.2")
@each_wire
def test_other_bits_of_the_mark_stay(world: World, wire: Wire) -> None:
    """Marks of others pass untouched, and our bit is taken away again when the packet leaves."""
    web = Web(world)
    web.apply("pod2-1")
    source = (
        f"ip{'6' if wire.family is Family.IPv6 else ''} daddr "
        f"{world.address('pod2-1', wire.family)}"
    )
    rules = f"""
    counter others {{ }}
    counter during {{ }}
    counter after {{ }}
    chain marks {{ type filter hook prerouting priority -150; iifname eth0 meta mark set 0x8003; }}
    chain forward {{ type filter hook forward priority -1; {source} meta mark 0xc003 counter name during; }}
    chain out {{ type filter hook postrouting priority 200; {source} meta mark 0x8003 counter name after; }}"""  # noqa: E501
    with foreign_rules(world, "node1", rules):
        answer = world.ask("client", *web.at("vip", wire))
        assert answer.source == masked(world, "node1", "pod2-1", wire.family)
        assert passes(world, "node1", "during")
        assert foreign_counter(world, "node1", "after") >= 1


@pytest.mark.contract("4.3.2")
@each_wire
def test_a_mark_of_others_with_our_bit_masquerades(world: World, wire: Wire) -> None:
    rules = (
        "chain marks { type filter hook prerouting priority -150; iifname eth0 meta mark "
        "set 0x4000; }"
    )
    with foreign_rules(world, "node1", rules):
        answer = world.ask("client", world.address("pod1-1", wire.family), 8080, wire.protocol)
    assert answer.source == masked(world, "node1", "pod1-1", wire.family)


@pytest.mark.contract("4.1.3", "4.1.6")
@each_wire
@pytest.mark.parametrize("kind", ["vip", "external"])
def test_the_way_back(world: World, wire: Wire, kind: Kind) -> None:
    """The client hears from the address it asked, through masquerade and without, or it would not
    take the answer.
    """
    web = Web(world)
    for spec in POLICIES.values():
        web.apply("pod1-1", **spec)
        outcome = world.connect("client", *web.at(kind, wire))
        assert isinstance(outcome, Answer)
        assert outcome.client == world.address("client", wire.family)
