"""What random packets and churn found, each as the smallest case that shows it.

The oracle says what is right.
"""

from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.configuration.settings import ALL
from nftproxy.model import EndpointSlice, Service
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.stage import Tally, play
from tests.support.strategies import Options, Scenario, Step
from tests.support.world import World

POD = "10.244.1.2"


def scenario(*steps: Step, **options: Any) -> Scenario:
    return Scenario(Options(**options), steps, seed=0)


def a(port: int = 80, **spec: Any) -> Service:
    """The Service of number 0."""
    return service("a", ("10.96.0.10", "fd00:10:96::10"), port, **spec)


def of_a(*endpoints: dict[str, Any], **options: Any) -> EndpointSlice:
    return endpoint_slice("a", endpoints, name="slice-0", **options)


@pytest.mark.parametrize(
    "case",
    [
        # The store told only the new family; a slice deleted and made anew between two lists looks
        # like that.
        pytest.param(
            scenario(
                Step({0: a()}, {0: (of_a(endpoint(POD, "node1")),)}),
                Step({}, {0: (of_a(endpoint("fd00:244:1::2", "node1"), family="IPv6"),)}),
            ),
            id="slice-changes-its-family",
            marks=pytest.mark.contract("3.1.2"),
        ),
    ],
)
def test_findings(case: Scenario) -> None:
    tally = Tally()
    play(case, tally)
    assert tally.packets > 50


@pytest.mark.contract("2.4.1", "5.9.3")
def test_a_chain_of_an_older_program_may_be_deleted_and_come_back() -> None:
    """The kernel side believed that such a chain could be emptied after it was tidied away, and
    refused the service for ever.
    """
    web = service(sessionAffinity="ClientIP")
    with World(lab={"nodes": 1, "pods": 1, "families": ["IPv4"]}) as world:
        first, second = (world.endpoints("pod1-1", port=port) for port in (8080, 9376))
        world.apply(web, first)
        # Another program; chains for ClientIP services stay until they change
        table = world.start("node1", masquerade_all=True)
        world.apply(web, second)
        table.tidy()
        reports = world.apply(first)
        assert not any(report.read_back for report in reports)
        assert world.ask("client", "10.96.0.10", 80).port == 8080


@pytest.mark.contract("2.4.2")
@pytest.mark.parametrize("family", Family)
def test_a_cluster_ip_with_the_port_of_a_node_port_teaches_it_nothing(family: Family) -> None:
    """With NodePorts on all addresses any original destination but a loopback one passed for an
    address of the node.
    """
    ips = {
        Family.IPv4: ("10.96.0.10", "10.96.0.11"),
        Family.IPv6: ("fd00:10:96::10", "fd00:10:96::11"),
    }[family]
    with World(lab={"nodes": 1, "pods": 1, "families": [family]}, nodeports={family: ALL}) as world:
        world.apply(
            service("sticky", ips[0], node_port=30080, sessionAffinity="ClientIP"),
            service("plain", ips[1], 30080),
            *(
                world.endpoints("pod1-1", of=name, name=name, family=family)
                for name in ("sticky", "plain")
            ),
        )
        memory = f"affinity{family.digit}-default/sticky/tcp/http-8080"
        assert world.ask("client", ips[1], 30080).port == 8080
        assert world.tables["node1"].kernel.elements(memory) == {}
        assert world.ask("client", world.address("node1", family), 30080).port == 8080
        assert len(world.tables["node1"].kernel.elements(memory)) == 1
