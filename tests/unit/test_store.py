"""The store: what makes a service dirty, and that nothing is lost (contract 1.1, 1.3, 3.1)."""

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import structs

from nftproxy.address import Family, Network, parse_network
from nftproxy.model import (
    EndpointSlice,
    Labels,
    Meta,
    Node,
    Object,
    ObjectName,
    Service,
    ServiceCIDR,
)
from nftproxy.store import Store
from tests.support.objects import endpoint, endpoint_slice, node, service, service_cidr

WEB = ObjectName("default", "web")


@pytest.fixture
def store() -> Store:
    return Store(Family)


def take(store: Store, family: Family = Family.IPv4, **options: Any) -> set[str]:
    return {name.name for name in store.take_dirty(family, **options).services}


def settle(store: Store) -> None:
    for family in Family:
        store.take_dirty(family)


@pytest.mark.contract("1.2.4")
def test_complete_when_services_and_slices_were_delivered(store: Store) -> None:
    assert not store.complete
    for kind in (Node, ServiceCIDR, Service):
        store.delivered(kind)
        assert not store.complete
    store.delivered(EndpointSlice)
    assert store.complete


@pytest.mark.contract("1.3.10")
def test_a_service_is_dirty_for_all_families_and_a_slice_for_its_own(store: Store) -> None:
    store.put(service())
    assert (take(store), take(store, Family.IPv6)) == ({"web"}, {"web"})
    store.put(endpoint_slice(endpoints=[endpoint("fd00::1")], family="IPv6"))
    assert not store.pending(Family.IPv4)
    assert (take(store), take(store, Family.IPv6)) == (set(), {"web"})
    store.put(node(zone="a"))
    store.put(service_cidr("c", "10.96.0.0/16"))
    assert (take(store), take(store, Family.IPv6)) == ({"web"}, {"web"})


@pytest.mark.contract("1.1.9", "1.3.8")
@pytest.mark.parametrize(
    "item",
    [
        service(),
        endpoint_slice(endpoints=[endpoint("10.244.1.2")]),
        node(zone="a"),
        service_cidr("c", "10.96.0.0/16"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_the_same_again_changes_nothing(store: Store, item: Object) -> None:
    store.put(service())
    store.put(item)
    settle(store)
    copy = msgspec.json.decode(msgspec.json.encode(item), type=type(item))
    assert not store.put(copy)
    assert not store.pending(Family.IPv4)


@pytest.mark.contract("1.3.8")
def test_any_change_of_a_slice_counts(store: Store) -> None:
    """Also another order of endpoints, and metadata."""
    one, two = endpoint("10.244.1.2"), endpoint("10.244.1.3")
    store.put(service())
    store.put(endpoint_slice(endpoints=[one, two]))
    settle(store)
    assert store.put(endpoint_slice(endpoints=[two, one]))
    assert take(store) == {"web"}


@pytest.mark.contract("1.3.8")
@pytest.mark.parametrize("kind", [Service, EndpointSlice, ServiceCIDR, Node])
def test_removing_what_is_unknown_is_nothing(store: Store, kind: type[Object]) -> None:
    settle(store)
    assert not store.remove(kind, ObjectName("default", "nobody"))
    assert not store.pending(Family.IPv4)


@pytest.mark.contract("1.1.5", "1.1.7")
@pytest.mark.parametrize("value", ["", "other"])
def test_a_service_of_another_proxy_is_a_deleted_one(store: Store, value: str) -> None:
    mine = service()
    foreign = structs.replace(
        mine, metadata=structs.replace(mine.metadata, labels=Labels(proxy_name=value))
    )
    assert not store.put(foreign)
    store.put(mine)
    settle(store)
    assert store.put(foreign)
    assert store.take_dirty(Family.IPv4).services == {WEB: (None, ())}
    assert not store.put(foreign)
    assert store.put(mine)


@pytest.mark.contract("1.1.6", "1.1.7")
def test_headless_is_a_label_of_slices_alone(store: Store) -> None:
    mine = service()
    store.put(
        structs.replace(mine, metadata=structs.replace(mine.metadata, labels=Labels(headless="")))
    )
    piece = endpoint_slice(endpoints=[endpoint("10.244.1.2")])
    store.put(piece)
    (taken,) = store.take_dirty(Family.IPv4).services.values()
    assert taken[0] is not None
    assert taken[1] == (piece,)
    assert store.put(
        endpoint_slice(
            endpoints=[endpoint("10.244.1.2")], labels={"service.kubernetes.io/headless": ""}
        )
    )
    assert store.take_dirty(Family.IPv4).services[WEB][1] == ()


@pytest.mark.contract("3.1.1")
@pytest.mark.parametrize("label", ["", None])
def test_a_slice_without_a_service_is_ignored(store: Store, label: str | None) -> None:
    store.put(service())
    piece = endpoint_slice(endpoints=[endpoint("10.244.1.2")])
    store.put(piece)
    settle(store)
    assert store.put(
        structs.replace(
            piece, metadata=structs.replace(piece.metadata, labels=Labels(service_name=label))
        )
    )
    assert store.take_dirty(Family.IPv4).services[WEB][1] == ()


@pytest.mark.contract("3.1.1")
def test_a_slice_belongs_to_a_service_of_its_namespace(store: Store) -> None:
    piece = endpoint_slice(endpoints=[endpoint("10.244.1.2")])
    store.put(structs.replace(piece, metadata=structs.replace(piece.metadata, namespace="other")))
    assert set(store.take_dirty(Family.IPv4).services) == {ObjectName("other", "web")}


@pytest.mark.contract("3.2.5")
def test_a_slice_moves_with_its_label(store: Store) -> None:
    store.put(service("old"))
    store.put(service("new", "10.96.0.11"))
    store.put(endpoint_slice("old", [endpoint("10.244.1.2")], name="s"))
    settle(store)
    store.put(endpoint_slice("new", [endpoint("10.244.1.2")], name="s"))
    taken = store.take_dirty(Family.IPv4).services
    assert {name.name: len(slices) for name, (_, slices) in taken.items()} == {"old": 0, "new": 1}


@pytest.mark.contract("1.4.1")
def test_only_the_zone_of_a_node_matters_and_its_deletion_does_not(store: Store) -> None:
    store.put(service())
    store.put(node(zone="a"))
    settle(store)
    assert not store.put(node(zone="a", addresses=["192.0.2.1"]))
    assert not store.remove(Node, ObjectName("default", "node1"))
    assert store.take_dirty(Family.IPv4).zone == "a"
    assert store.put(node())
    assert take(store) == {"web"}
    assert store.take_dirty(Family.IPv4).zone == ""


@pytest.mark.contract("1.4.1", "1.4.4")
def test_the_node_is_remembered(store: Store) -> None:
    store.put(node(zone="a"))
    store.remove(Node, ObjectName("default", "node1"))
    assert store.node is not None


@pytest.mark.contract("1.5.1", "1.5.3")
def test_service_cidrs_are_the_union_of_all(store: Store) -> None:
    store.put(service_cidr("a", "10.96.0.0/16", "fd00::/112"))
    store.put(service_cidr("b", "10.96.0.0/16", "10.97.0.0/16"))
    assert store.take_dirty(Family.IPv4).networks == [parse_network("10.96.0.0/15")]
    assert store.take_dirty(Family.IPv6).networks == [Network(Family.IPv6, "fd00::", 112)]
    assert store.take_dirty(Family.IPv4).networks is None, "unchanged"
    store.remove(ServiceCIDR, ObjectName("default", "a"))
    assert store.take_dirty(Family.IPv4).networks == [parse_network("10.96.0.0/15")]
    store.remove(ServiceCIDR, ObjectName("default", "b"))
    assert store.take_dirty(Family.IPv4).networks == []


def test_what_a_failed_sync_took_is_taken_again(store: Store) -> None:
    store.put(service())
    store.put(service_cidr("a", "10.96.0.0/16"))
    taken = store.take_dirty(Family.IPv4)
    assert not store.pending(Family.IPv4)
    store.give_back(Family.IPv4, taken)
    assert store.pending(Family.IPv4)
    again = store.take_dirty(Family.IPv4)
    assert (again.services.keys(), again.networks) == (taken.services.keys(), taken.networks)


def test_everything_is_everything(store: Store) -> None:
    store.put(service())
    store.put(service("other", "10.96.0.11"))
    settle(store)
    assert take(store) == set()
    assert take(store, everything=True) == {"web", "other"}


@pytest.mark.parametrize("kind", [Service, EndpointSlice, ServiceCIDR])
def test_a_list_replaces_what_was_known(store: Store, kind: type[Object]) -> None:
    make: dict[type[Object], Callable[[str], Object]] = {
        Service: service,
        EndpointSlice: lambda name: endpoint_slice(name, [endpoint("10.244.1.2")], name=name),
        ServiceCIDR: lambda name: service_cidr(name, "10.96.0.0/16"),
    }
    one, two, three = (make[kind](name) for name in "abc")
    assert store.replace(kind, [one, two])
    settle(store)
    assert not store.replace(kind, [two, one])
    assert not store.pending(Family.IPv4)
    assert store.replace(kind, [two, three])
    if kind is not ServiceCIDR:
        assert take(store) == {"a", "c"}
    assert not store.replace(kind, [two], keep=[ObjectName("default", "c")])
    assert store.replace(kind, [two])


def test_many_threads_lose_nothing(store: Store) -> None:
    """Sources deliver while syncs take."""
    seen: set[str] = set()
    stopping = threading.Event()

    def deliver_some(thread: int) -> None:
        for number in range(300):
            store.put(service(f"s{thread}-{number}"))

    def take_some() -> None:
        while not stopping.is_set():
            seen.update(take(store))

    taker = threading.Thread(target=take_some)
    threads = [threading.Thread(target=deliver_some, args=(number,)) for number in range(4)]
    taker.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stopping.set()
    taker.join()
    assert seen | take(store) == {
        f"s{thread}-{number}" for thread in range(4) for number in range(300)
    }


def test_a_slice_without_its_label_is_noted_once() -> None:
    notes: list[str] = []
    store = Store([Family.IPv4], note=notes.append)
    stray = EndpointSlice(metadata=Meta(name="s"), address_type="IPv4")
    for _ in range(2):
        store.put(stray)
        store.replace(EndpointSlice, [stray])
    assert [note.partition(" has no label")[0] for note in notes] == ["EndpointSlice default/s"]
    store.replace(EndpointSlice, [])
    store.put(stray)
    assert len(notes) == 2, "a slice that went and came is another one"
