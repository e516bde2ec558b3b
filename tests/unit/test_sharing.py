"""Groups of endpoints whose clients are remembered together for all ports of a Service."""

from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.routes import Compiled, Context, compile_service
from nftproxy.selection import Endpoint, Locality
from nftproxy.sharing import Group, grouped
from nftproxy.table.program import Program
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.world import settings

A, B, C = "10.244.1.2", "10.244.1.3", "10.244.2.2"


def of(**numbers: int) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(globals()[name], number) for name, number in numbers.items())


def test_endpoints_that_all_ports_have_are_one_group() -> None:
    groups, of_ports = grouped("n/s", [of(A=8080, B=8080), of(B=53, A=53)])
    assert groups == (Group("n/s-8080.53", (A, B)),)
    assert of_ports == [(("n/s-8080.53", 8080),), (("n/s-8080.53", 53),)]


def test_endpoints_with_other_numbers_and_with_fewer_ports_are_others() -> None:
    """Those with fewer ports are looked up first."""
    groups, (first, second) = grouped("n/s", [of(A=8080, B=9376, C=8080), of(A=53, B=54)])
    assert groups == (
        Group("n/s-8080.0", (C,)),
        Group("n/s-8080.53", (A,)),
        Group("n/s-9376.54", (B,)),
    )
    assert first == (("n/s-8080.0", 8080), ("n/s-8080.53", 8080), ("n/s-9376.54", 9376))
    assert [number for _, number in second] == [0, 53, 54]


def test_a_port_without_endpoints_changes_no_group() -> None:
    """It has none of them, and the others keep what they remember."""
    groups, of_ports = grouped("n/s", [of(A=8080), (), of(A=53)])
    assert groups == (Group("n/s-8080.53", (A,)),)
    assert of_ports[1] == (("n/s-8080.53", 0),)


def test_of_several_numbers_of_an_address_the_lowest_counts() -> None:
    several = (Endpoint(A, 9376), Endpoint(A, 8080), Endpoint(A, 8081))
    assert grouped("n/s", [several])[0] == (Group("n/s-8080", (A,)),)


def compiled(name: str, numbers: list[int], **spec: Any) -> Compiled:
    """A Service with a port for each number of its two endpoints."""
    ports = [{"name": f"p{n}", "port": 80 + n, "protocol": "TCP"} for n in range(len(numbers))]
    made = service(
        name,
        ports=ports,
        sessionAffinity="ClientIP",
        annotations={"nftproxy.io/affinity-scope": "service"},
        **spec,
    )
    targets = [{**port, "port": number} for port, number in zip(ports, numbers, strict=True)]
    piece = endpoint_slice(name, [endpoint(A, "node1"), endpoint(C, "node2")], ports=targets)
    found = compile_service(
        made, [piece], Context(Family.IPv4, Locality("node1", ""), "192.168.50.11"), []
    )
    assert found
    return found


@pytest.mark.parametrize("name", ["web", "web-999983", "web-1", "x8080.9090"])
def test_what_is_filled_into_an_example_is_what_would_be_made(name: str) -> None:
    """Also where the names hold numbers that stand for others."""
    program = Program(settings())
    for affinity in compiled(name, [8080, 9090, 999], externalTrafficPolicy="Local").affinities:
        assert program.affinity(affinity) == program._texts(affinity)
        assert all(name in program.affinity(affinity) for name in affinity.chains)


def test_all_ports_are_remembered_by_one_chain_in_one_memory() -> None:
    found = compiled("web", [8080, 9090])
    assert found.shared
    assert [group.addresses for group in found.shared.cluster] == [(A, C)]
    assert len({affinity.learn for affinity in found.affinities}) == 1
    assert len({name for a in found.affinities for name in Program(settings()).affinity(a)}) == (
        2 + 2 + 3  # a pick and its end; a chain for each port; what remembers, memory and members
    )
