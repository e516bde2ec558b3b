"""What is forwarded on loopback addresses, and to whom."""

import msgspec
import pytest

from nftproxy.address import Family
from nftproxy.forwarder.bounds import Bounds, bounds
from nftproxy.forwarder.choosing import Choosing
from nftproxy.forwarder.messages import (
    Backends,
    Bulletin,
    Instruction,
    LocalFrontend,
    encode,
    to_bulletin,
    to_instruction,
)
from nftproxy.forwarder.process import LocalNodePorts, backends_of
from nftproxy.routes import Affinity, Frontend, Refusal, Route
from nftproxy.selection import Endpoint
from nftproxy.table.schema import Policy

IPv4 = Family.IPv4
HERE, ELSEWHERE = Endpoint("10.244.1.2", 8080), Endpoint("10.244.2.2", 8080)
ONE, TWO = (HERE.address, HERE.port), (ELSEWHERE.address, ELSEWHERE.port)


def route(policy: Policy = Policy.EXTERNAL, *, local: bool = True, cluster: bool = True) -> Route:
    return Route(
        "default/web:http",
        Frontend.node_port("tcp", 30080),
        policy,
        (HERE, ELSEWHERE) if cluster else (),
        (HERE,) if local and policy.uses_local else (),
        Refusal.NONE,
    )


@pytest.mark.contract("2.10.3", "2.10.4")
@pytest.mark.parametrize(
    ("wanted", "endpoints"),
    [
        (route(), (ONE, TWO)),
        (route(cluster=False), None),
        (route(Policy.PRESERVE), (ONE,)),
        (route(Policy.PRESERVE, local=False), None),
    ],
    ids=["Cluster", "Cluster, none", "Local", "Local, none here"],
)
def test_the_endpoints_are_those_of_the_policy(
    wanted: Route, endpoints: tuple[tuple[str, int], ...] | None
) -> None:
    found = backends_of(wanted)
    assert (found and found.endpoints) == endpoints
    assert found is None or (found.name, found.affinity) == ("default/web:http", None)


@pytest.mark.contract("2.10.5")
def test_affinity_has_the_time_of_the_service() -> None:
    affinity = Affinity("default/web/tcp/http", IPv4, "tcp", 100, (HERE,), (), ())
    found = backends_of(msgspec.structs.replace(route(), affinity=affinity))
    assert found
    assert found.affinity == 100


@pytest.mark.contract("2.10.5")
def test_an_endpoint_is_kept_until_nobody_asked_for_it_for_long_enough() -> None:
    choosing = Choosing(
        Backends("default/web", tuple((f"10.244.1.{n}", 80) for n in range(100)), 10)
    )
    first = choosing.endpoint(0)
    assert [choosing.endpoint(now) for now in (5, 14, 23.9)] == [first] * 3, "renewed each time"
    later = {choosing.endpoint(now) for now in range(100, 2000, 20)}
    assert len(later) > 10, "chosen again each time"


def frontend(port: int) -> LocalFrontend:
    return LocalFrontend(IPv4, port)


def test_only_changes_are_ordered() -> None:
    ports = LocalNodePorts(IPv4)
    first = ports.changed({1: route(), 2: route(cluster=False)}, read_back=True, whole=True)
    assert first == {frontend(1): backends_of(route()), frontend(2): None}
    assert ports.changed({}, read_back=False, whole=True) == {}
    assert ports.changed({1: None}, read_back=False, whole=True) == {frontend(1): None}


@pytest.mark.contract("2.10.10")
def test_what_is_gone_after_reading_back_is_forwarded_no_longer() -> None:
    """A Service that comes last may be postponed: its NodePorts stay until all were seen."""
    ports = LocalNodePorts(IPv4)
    ports.changed(dict.fromkeys((1, 2, 3), route()), read_back=True, whole=True)
    assert set(ports.changed({1: route()}, read_back=True, whole=False)) == {frontend(1)}
    last = ports.changed({2: route()}, read_back=False, whole=True)
    assert last == {frontend(2): backends_of(route()), frontend(3): None}
    assert ports.changed({}, read_back=False, whole=True) == {}


@pytest.mark.parametrize(
    "message",
    [
        Instruction([(frontend(30080), Backends("default/web", (ONE, TWO), 10800))]),
        Instruction([(LocalFrontend(Family.IPv6, 1), None)]),
    ],
)
def test_instructions_arrive_as_they_were_sent(message: Instruction) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert to_instruction(line) == message


def test_bulletins_arrive_as_they_were_sent() -> None:
    message = Bulletin({IPv4: 3}, {Family.IPv6: 1}, "a\nwarning", "")
    line = encode(message)
    assert line.count(b"\n") == 1
    assert to_bulletin(line) == message


@pytest.mark.contract("2.10.7")
@pytest.mark.parametrize(("descriptors", "connections"), [(1 << 20, 8192), (1024, 85), (256, 1)])
def test_connections_never_need_more_descriptors_than_there_are(
    descriptors: int, connections: int
) -> None:
    found = bounds(descriptors)
    assert found.connections == connections
    assert 1 <= found.of_port <= Bounds().of_port
