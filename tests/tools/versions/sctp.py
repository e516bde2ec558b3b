"""SCTP with real packets, on kernels that have it.

Associations are translated, masqueraded and remembered as TCP connections are.

Not collected by `make test`: the virtual machines of `make test-kernels` run it.
"""

from collections.abc import Iterator

import pytest

from nftproxy.address import Family
from nftproxy.lab.client import Answer, Connection
from tests.support.frontends import EXTERNAL, KINDS, Kind, Web, Wire, masked, route_outside
from tests.support.world import SLOW, World

WIRES = [Wire(family, "SCTP") for family in Family]
each_wire = pytest.mark.parametrize("wire", WIRES, ids=str)
PODS = ("pod1-1", "pod1-2", "pod2-1")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        route_outside(world)
        for pod in world.lab.pods:
            world.lab.listen(pod, [8080], ["SCTP"])
        yield world


@pytest.mark.contract("2.1.4", "2.3.5", "4.1.6")
@each_wire
def test_cluster_ip(world: World, wire: Wire) -> None:
    web = Web(world, wire)
    web.apply(*PODS)
    assert web.answers("pod1-3", "cluster", wire) == set(PODS)
    answer = world.ask("pod1-3", *web.at("cluster", wire))
    assert (answer.port, answer.source) == (8080, world.address("pod1-3", wire.family)), (
        "not masqueraded"
    )


@pytest.mark.contract("2.1.4", "2.3.6", "4.1.3")
@each_wire
@pytest.mark.parametrize("kind", EXTERNAL)
@pytest.mark.parametrize("pod", ["pod1-1", "pod2-1"])
def test_from_outside(world: World, wire: Wire, kind: Kind, pod: str) -> None:
    web = Web(world, wire)
    web.apply(pod)
    answer = world.ask("client", *web.at(kind, wire))
    assert (answer.name, answer.source) == (pod, masked(world, "node1", pod, wire.family))


@pytest.mark.contract("2.3.7", "4.1.6")
@each_wire
@pytest.mark.parametrize("kind", EXTERNAL)
def test_local_policy_keeps_the_source(world: World, wire: Wire, kind: Kind) -> None:
    web = Web(world, wire)
    web.apply(*PODS, externalTrafficPolicy="Local")
    assert web.answers("client", kind, wire) == {"pod1-1", "pod1-2"}
    assert world.ask("client", *web.at(kind, wire)).source == world.address("client", wire.family)


@pytest.mark.contract("4.1.5", "4.4.1")
@each_wire
def test_a_pod_reaches_itself(world: World, wire: Wire) -> None:
    web = Web(world, wire)
    web.apply("pod1-1")
    answer = world.ask("pod1-1", *web.at("cluster", wire))
    assert (answer.name, answer.source) == ("pod1-1", masked(world, "node1", "pod1-1", wire.family))


@pytest.mark.contract("2.4.1")
@each_wire
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_stays_with_its_endpoint(world: World, wire: Wire, kind: Kind) -> None:
    web = Web(world, wire)
    web.apply(
        *PODS,
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 10800}},
    )
    assert len(web.answers("client", kind, wire, times=16)) == 1


@pytest.mark.contract("2.5.1")
@each_wire
@pytest.mark.parametrize("kind", KINDS)
def test_no_endpoints(world: World, wire: Wire, kind: Kind) -> None:
    """The entry that refuses sees the packet.

    The client's kernel takes the ICMP error for a hint and asks again, so it hears nothing.
    """
    web = Web(world, wire)
    web.apply()
    before = web.refusal_counter(kind, wire)
    assert not isinstance(world.connect("client", *web.at(kind, wire), timeout=0.05 * SLOW), Answer)
    assert web.refusal_counter(kind, wire) > before


@pytest.mark.contract("2.9.1")
@each_wire
def test_an_association_survives_what_happens_to_its_service(world: World, wire: Wire) -> None:
    web = Web(world, wire)
    web.apply("pod2-1")
    opened = world.lab.open_connection("client", *web.at("nodeport", wire), timeout=SLOW)
    assert isinstance(opened, Connection)
    with opened:
        web.apply("pod1-1")
        assert world.ask("client", *web.at("nodeport", wire)).name == "pod1-1", (
            "new ones go to the new endpoint"
        )
        assert opened.again(timeout=SLOW) == opened.answer
        web.delete()
        assert opened.again(timeout=SLOW) == opened.answer
        assert not isinstance(
            world.connect("client", *web.at("nodeport", wire), timeout=0.05 * SLOW), Answer
        )
