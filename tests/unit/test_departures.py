"""Which endpoints are gone: those that no slice of any Service lists, nor their pods."""

from collections.abc import Mapping
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.departures import Departures, Place
from nftproxy.model import EndpointSlice, ObjectName
from tests.support.objects import endpoint, endpoint_slice

ONE, TWO = "10.244.1.2", "10.244.1.3"
DRAINING = {"ready": False, "serving": True, "terminating": True}
NOT_READY = {"ready": False, "serving": False}


def place(address: str = ONE, port: int = 8080, proto: str = "tcp") -> Place:
    return address, proto, port


class Cluster:
    """Services by name, each with its slices."""

    def __init__(self, family: Family = Family.IPv4) -> None:
        self.departures = Departures(family)
        self.came: set[str] = set()

    def say(self, **services: Any) -> set[Place]:
        """Give Services these slices; return which endpoints have left, and note which came."""
        seen = {
            ObjectName("default", name): (
                None,
                (slices,) if isinstance(slices, EndpointSlice) else tuple(slices),
            )
            for name, slices in services.items()
        }
        left, self.came = self.departures.saw(seen)
        return left


def piece(*endpoints: str | Mapping[str, Any], of: str = "web", **more: Any) -> EndpointSlice:
    found = [endpoint(each) if isinstance(each, str) else each for each in endpoints]
    return endpoint_slice(of, found, **more)


def test_an_endpoint_that_leaves_its_only_slice_is_gone() -> None:
    cluster = Cluster()
    assert cluster.say(web=piece(ONE, TWO)) == set()
    assert cluster.came == {ONE, TWO}
    assert cluster.say(web=piece(TWO)) == {place(ONE)}
    assert cluster.came == set()
    assert cluster.say(web=piece(TWO)) == set()


def test_a_deleted_slice_takes_all_its_endpoints_and_ports() -> None:
    cluster = Cluster()
    ports = [
        {"name": "http", "port": 80, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "none"},
    ]
    cluster.say(web=piece(ONE, TWO, ports=ports))
    assert cluster.say(web=()) == {
        (address, proto, port)
        for address in (ONE, TWO)
        for proto, port in (("tcp", 80), ("udp", 53))
    }
    assert not cluster.departures.knows(ONE)


@pytest.mark.parametrize("condition", [DRAINING, NOT_READY], ids=["draining", "not ready"])
def test_what_is_listed_in_any_condition_is_not_gone(condition: dict[str, Any]) -> None:
    cluster = Cluster()
    cluster.say(web=piece(ONE, TWO))
    assert cluster.say(web=piece(endpoint(ONE, **condition), TWO)) == set()
    assert cluster.say(web=piece(TWO)) == {place(ONE)}


def test_another_slice_of_the_service_may_list_it() -> None:
    cluster = Cluster()
    first, second = piece(ONE, TWO, name="a"), piece(ONE, name="b")
    cluster.say(web=[first, second])
    assert cluster.say(web=[piece(TWO, name="a"), second]) == set()
    assert cluster.say(web=[piece(TWO, name="a")]) == {place(ONE)}


def test_an_endpoint_that_moves_to_another_slice_never_left() -> None:
    cluster = Cluster()
    cluster.say(web=[piece(ONE, name="a"), piece(TWO, name="b")])
    assert cluster.say(web=[piece(TWO, name="a"), piece(ONE, name="b")]) == set()


def test_another_service_may_list_it_in_another_spelling() -> None:
    cluster = Cluster(Family.IPv6)
    one = "fd00:244:1::2"
    mine = {"family": "IPv6"}
    cluster.say(web=piece(one, **mine), other=piece("FD00:244:1:0::2", of="other", **mine))
    assert cluster.say(web=()) == set()
    assert cluster.say(other=()) == {place(one)}


def test_a_pod_that_goes_on_at_another_port_is_not_gone_until_it_leaves_there_too() -> None:
    cluster = Cluster()
    pod = endpoint(ONE, pod="u1")
    cluster.say(web=piece(pod), admin=piece(pod, of="admin", port=9090))
    assert cluster.say(web=()) == set(), "the same pod serves another Service"
    assert cluster.say(admin=()) == {place(port=8080), place(port=9090)}


def test_another_pod_at_the_address_says_nothing_about_the_first() -> None:
    """Pods on the host network have the node's address."""
    cluster = Cluster()
    cluster.say(
        api=piece(ONE, of="api", port=6443),
        web=piece(endpoint(ONE, pod="u1")),
        exporter=piece(endpoint(ONE, pod="u2"), of="exporter", port=9100),
    )
    assert cluster.say(web=()) == {place(port=8080)}
    assert cluster.say(api=()) == {place(port=6443)}, "it never had a targetRef"


def test_without_targetref_the_same_address_is_the_same_endpoint() -> None:
    cluster = Cluster()
    cluster.say(web=piece(ONE), admin=piece(ONE, of="admin", port=9090))
    assert cluster.say(web=()) == set()
    assert cluster.say(admin=()) == {place(port=8080), place(port=9090)}


def test_another_pod_that_takes_address_and_port_is_listed() -> None:
    cluster = Cluster()
    cluster.say(web=piece(endpoint(ONE, pod="u1")))
    assert cluster.say(web=piece(endpoint(ONE, pod="u2"))) == set()
    assert cluster.say(web=()) == {place()}


def test_a_changed_port_leaves_the_pod_alive() -> None:
    cluster = Cluster()
    pod = endpoint(ONE, pod="u1")
    cluster.say(web=piece(pod))
    assert cluster.say(web=piece(pod, port=9090)) == set()
    assert cluster.say(web=()) == {place(port=8080), place(port=9090)}


def test_slices_of_the_other_family_and_unusable_addresses_count_for_nothing() -> None:
    cluster = Cluster()
    other = piece("fd00::1", family="IPv6", name="six")
    names = piece("example.com", family="FQDN", name="names")
    odd = piece("127.0.0.1", "not an address", {"addresses": []}, name="odd")
    assert cluster.say(web=[other, names, odd]) == set()
    assert cluster.came == set()
    assert cluster.say(web=()) == set()


def test_an_address_that_comes_back_is_said_to_have_come() -> None:
    cluster = Cluster()
    cluster.say(web=piece(ONE))
    cluster.say(web=())
    assert cluster.say(other=piece(ONE, of="other", port=1)) == set()
    assert cluster.came == {ONE}
    assert cluster.departures.lists(place(port=1))
    assert not cluster.departures.lists(place())


def test_what_a_pod_left_behind_is_forgotten_with_it() -> None:
    cluster = Cluster()
    pod = endpoint(ONE, pod="u1")
    for port in range(1, 50):
        cluster.say(web=piece(pod, port=port))
    assert len(cluster.say(web=())) == 49
    assert not cluster.departures._kept
    assert not cluster.departures._where
    assert not cluster.departures._slices
