"""The store, and what syncs make of any sequence of changes: exactly what a fresh start would (contract 1.1, 1.3, 3.1, 5.7)."""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from loguru import logger
from msgspec import structs

from nftproxy import firstload
from nftproxy import syncer as syncer_module
from nftproxy.address import Family, Network, parse_network
from nftproxy.model import EndpointSlice, Labels, Node, Object, ObjectName, Service, ServiceCIDR
from nftproxy.proxy import Table
from nftproxy.store import Store
from tests.objects import endpoint, endpoint_slice, node, service, service_cidr
from tests.tables import bare_table, contents, deliver, names, new_namespace, table_in, unordered

WEB = ObjectName("default", "web")


@pytest.fixture
def store() -> Store:
    return Store(Family)


def take(store: Store, family: Family = Family.IPv4, **options: Any) -> set[str]:
    return {name.name for name in store.take(family, **options).services}


def settle(store: Store) -> None:
    for family in Family:
        store.take(family)


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
    foreign = structs.replace(mine, metadata=structs.replace(mine.metadata, labels=Labels(proxy_name=value)))
    assert not store.put(foreign)
    store.put(mine)
    settle(store)
    assert store.put(foreign)
    assert store.take(Family.IPv4).services == {WEB: (None, ())}
    assert not store.put(foreign)
    assert store.put(mine)


@pytest.mark.contract("1.1.6", "1.1.7")
def test_headless_is_a_label_of_slices_alone(store: Store) -> None:
    mine = service()
    store.put(structs.replace(mine, metadata=structs.replace(mine.metadata, labels=Labels(headless=""))))
    piece = endpoint_slice(endpoints=[endpoint("10.244.1.2")])
    store.put(piece)
    (taken,) = store.take(Family.IPv4).services.values()
    assert taken[0] is not None
    assert taken[1] == (piece,)
    assert store.put(endpoint_slice(endpoints=[endpoint("10.244.1.2")], labels={"service.kubernetes.io/headless": ""}))
    assert store.take(Family.IPv4).services[WEB][1] == ()


@pytest.mark.contract("3.1.1")
@pytest.mark.parametrize("label", ["", None])
def test_a_slice_without_a_service_is_ignored(store: Store, label: str | None) -> None:
    store.put(service())
    piece = endpoint_slice(endpoints=[endpoint("10.244.1.2")])
    store.put(piece)
    settle(store)
    assert store.put(structs.replace(piece, metadata=structs.replace(piece.metadata, labels=Labels(service_name=label))))
    assert store.take(Family.IPv4).services[WEB][1] == ()


@pytest.mark.contract("3.1.1")
def test_a_slice_belongs_to_a_service_of_its_namespace(store: Store) -> None:
    piece = endpoint_slice(endpoints=[endpoint("10.244.1.2")])
    store.put(structs.replace(piece, metadata=structs.replace(piece.metadata, namespace="other")))
    assert set(store.take(Family.IPv4).services) == {ObjectName("other", "web")}


@pytest.mark.contract("3.1.2")
def test_a_slice_of_names_is_logged_once_per_family() -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    names = structs.replace(endpoint_slice(endpoints=[endpoint("db.example")]), address_type="FQDN")
    try:
        ports = [{"name": name, "port": port} for name, port in (("http", 80), ("alt", 81))]
        with bare_table(service(cluster_ip=["10.96.0.10", "fd00::10"], ports=ports), families=Family) as table:
            for family in Family:
                table.sync(family, [])
            assert lines == []
            deliver(table, names)
            for family in Family:
                assert table.sync(family, []).services == 1
                assert table.sync(family, []).services == 0
    finally:
        logger.remove(sink)
    assert [line for line in lines if "FQDN" in line] == [
        f"Service default/web {family}: EndpointSlice web-ipv4: addressType FQDN; ignored\n" for family in Family
    ]


@pytest.mark.contract("3.2.5")
def test_a_slice_moves_with_its_label(store: Store) -> None:
    store.put(service("old"))
    store.put(service("new", "10.96.0.11"))
    store.put(endpoint_slice("old", [endpoint("10.244.1.2")], name="s"))
    settle(store)
    store.put(endpoint_slice("new", [endpoint("10.244.1.2")], name="s"))
    taken = store.take(Family.IPv4).services
    assert {name.name: len(slices) for name, (_, slices) in taken.items()} == {"old": 0, "new": 1}


@pytest.mark.contract("1.4.1")
def test_only_the_zone_of_a_node_matters_and_its_deletion_does_not(store: Store) -> None:
    store.put(service())
    store.put(node(zone="a"))
    settle(store)
    assert not store.put(node(zone="a", addresses=["192.0.2.1"]))
    assert not store.remove(Node, ObjectName("default", "node1"))
    assert store.take(Family.IPv4).zone == "a"
    assert store.put(node())
    assert take(store) == {"web"}
    assert store.take(Family.IPv4).zone == ""


@pytest.mark.contract("1.4.1", "1.4.4")
def test_the_node_is_remembered(store: Store) -> None:
    store.put(node(zone="a"))
    store.remove(Node, ObjectName("default", "node1"))
    assert store.node is not None


@pytest.mark.contract("1.5.1", "1.5.3")
def test_service_cidrs_are_the_union_of_all(store: Store) -> None:
    store.put(service_cidr("a", "10.96.0.0/16", "fd00::/112"))
    store.put(service_cidr("b", "10.96.0.0/16", "10.97.0.0/16"))
    assert store.take(Family.IPv4).networks == [parse_network("10.96.0.0/15")]
    assert store.take(Family.IPv6).networks == [Network(Family.IPv6, "fd00::", 112)]
    assert store.take(Family.IPv4).networks is None, "unchanged"
    store.remove(ServiceCIDR, ObjectName("default", "a"))
    assert store.take(Family.IPv4).networks == [parse_network("10.96.0.0/15")]
    store.remove(ServiceCIDR, ObjectName("default", "b"))
    assert store.take(Family.IPv4).networks == []


def test_what_a_failed_sync_took_is_taken_again(store: Store) -> None:
    store.put(service())
    store.put(service_cidr("a", "10.96.0.0/16"))
    taken = store.take(Family.IPv4)
    assert not store.pending(Family.IPv4)
    store.give_back(Family.IPv4, taken)
    assert store.pending(Family.IPv4)
    again = store.take(Family.IPv4)
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
    assert seen | take(store) == {f"s{thread}-{number}" for thread in range(4) for number in range(300)}


# --- any sequence of changes ----------------------------------------------------------------------------------------------------

SERVICES = ("a", "b", "c")
PODS = tuple(f"10.244.{node}.{pod}" for node in (1, 2) for pod in (2, 3, 4))
SHARED = ("203.0.113.1", "203.0.113.2")
RANGES = (["198.51.100.0/24"], ["198.51.100.0/24", "192.168.50.0/24"], ["10.0.0.0/8", "0.0.0.0/0"], ["192.168.50.11/32"])


@st.composite
def services(draw: st.DrawFn) -> Service:
    name = draw(st.sampled_from(SERVICES))
    protocols = {"http": "TCP", "alt": "TCP", "dns": "UDP"}
    ports = [
        {"name": port, "protocol": protocols[port], "port": number, "nodePort": draw(st.sampled_from([0, 30080, 30081]))}
        for port, number in {"http": 80, "alt": 81, "dns": 80}.items()
        if draw(st.booleans())
    ]
    spec: dict[str, Any] = {
        "ports": ports,
        "vips": draw(st.lists(st.sampled_from(SHARED), max_size=2)),
        "externalIPs": draw(st.lists(st.sampled_from(SHARED), max_size=2)),
        "externalTrafficPolicy": draw(st.sampled_from(["Cluster", "Local"])),
        "internalTrafficPolicy": draw(st.sampled_from(["Cluster", "Local"])),
        "sessionAffinity": draw(st.sampled_from(["None", "ClientIP"])),
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": draw(st.sampled_from([100, 200]))}},
        "loadBalancerSourceRanges": draw(st.sampled_from([[], *RANGES])),
        "created": draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
    }
    cluster_ip = draw(st.sampled_from([f"10.96.0.{10 + SERVICES.index(name)}", "10.96.0.10", SHARED[0], "None"]))
    return service(name, cluster_ip, **spec)


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    endpoints = [
        endpoint(
            address,
            draw(st.sampled_from(["node1", "node2", ""])),
            ready=draw(st.sampled_from([True, True, False, None])),
            serving=draw(st.sampled_from([True, False, None])),
            terminating=draw(st.sampled_from([False, False, True])),
            **draw(st.sampled_from([{}, {}, {"zones": ["east"]}, {"zones": ["west"]}, {"nodes": ["node1"]}])),
        )
        for address in draw(st.lists(st.sampled_from(PODS), max_size=5))
    ]
    ports = [
        {"name": name, "port": draw(st.sampled_from([8080, 8080, 9376])), "protocol": protocol}
        for name, protocol in (("http", "TCP"), ("alt", "TCP"), ("dns", "UDP"))
    ]
    name = draw(st.sampled_from(["s1", "s2", "s3"]))
    return endpoint_slice(draw(st.sampled_from(SERVICES)), endpoints, name=name, ports=ports)


changes = st.one_of(
    services(),
    slices(),
    slices(),
    st.tuples(st.just(Service), st.sampled_from(SERVICES)),
    st.tuples(st.just(EndpointSlice), st.sampled_from(["s1", "s2", "s3"])),
    st.sampled_from([node(zone="east"), node(zone="west"), node()]),
    st.sampled_from(["sync", "sync", "restart", "tidy"]),
)


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    with new_namespace() as name:
        yield name


@pytest.fixture(scope="module")
def reference() -> Iterator[Table]:
    with bare_table() as table:
        yield table


def fresh(reference: Table, objects: dict[Any, Object]) -> dict[str, Any]:
    """What a first start makes of these objects."""
    reference.kernel.delete_table()
    table = Table(reference.settings, Store(reference.settings.families), reference.kernel)
    table.distrust(program=True)
    deliver(table, *objects.values())
    assert table.sync(Family.IPv4, []).refused == {}
    return unordered(contents(table))


@pytest.mark.contract("1.3.7", "2.2.3", "3.1.8", "3.2.5", "5.7.8", "5.8.2")
@given(
    steps=st.lists(changes, min_size=3, max_size=24),
    portion=st.sampled_from([1, syncer_module.PORTION]),
    batch=st.sampled_from([1, firstload.BATCH]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_sequence_of_changes_ends_as_a_fresh_start(
    steps: list[Any], portion: int, batch: int, netns: str, reference: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens in between: syncs, restarts with nothing but the table, tidying, services that fight for an address."""
    monkeypatch.setattr(syncer_module, "PORTION", portion)
    for module in (syncer_module, firstload):
        monkeypatch.setattr(module, "BATCH", batch)
    objects: dict[Any, Object] = {}
    with table_in(netns) as first:
        first.kernel.delete_table()
        table = first
        for step in [*steps, "sync", "tidy", "sync"]:
            match step:
                case "sync" | "restart":
                    if step == "restart":
                        table = Table(first.settings, Store(first.settings.families), first.kernel)
                        table.distrust(program=False)
                        deliver(table, *objects.values())
                    report = table.sync(Family.IPv4, [])
                    assert report.refused == {}
                    assert unordered(contents(table)) == fresh(reference, objects), names(objects.values())
                    assert table.sync(Family.IPv4, []).transactions == 0
                case "tidy":
                    table.tidy()
                case (kind, name):
                    objects.pop((kind, name), None)
                    table.store.remove(kind, ObjectName("default", name))
                case item:
                    note(repr(item))
                    objects[type(item), item.metadata.name] = item
                    table.store.put(item)
        assert table.store.pending(Family.IPv4) is False
        report = Table(first.settings, table.store, first.kernel).sync(Family.IPv4, [])
        assert (report.transactions, report.read_back) == (0, True), "a restart with nothing changed writes nothing"


@pytest.mark.contract("2.2.3", "5.7.8")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("before", [None, 0, 1, 2], ids=["first start", "0 had it", "1 had it", "2 had it"])
@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_rivals_at_a_start(order: tuple[int, ...], before: int | None, affinity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order services are looked at, one at a time, and whoever had the frontend before."""

    def one_by_one(services: dict[ObjectName, Any], _: int | None) -> Iterator[dict[ObjectName, Any]]:
        names = [ObjectName("default", f"s{number}") for number in order]
        return ({name: services[name]} for name in names if name in services)

    monkeypatch.setattr(syncer_module, "_portions", one_by_one)
    spec: dict[str, Any] = {"externalIPs": ["203.0.113.1"], "sessionAffinity": affinity}
    items: dict[int, list[Object]] = {
        number: [
            service(f"s{number}", f"10.96.0.{10 + number}", created=f"2026-01-0{number + 1}T00:00:00Z", **spec),
            endpoint_slice(f"s{number}", [endpoint(f"10.244.{number}.{pod}") for pod in range(2, 5 - number)]),
        ]
        for number in range(3)
    }
    with new_namespace() as netns, bare_table(*itertools.chain(*items.values())) as wanted:
        assert wanted.sync(Family.IPv4, []).refused == {}
        if before is not None:
            with table_in(netns, *items[before]) as table:
                table.sync(Family.IPv4, [])
        with table_in(netns, *itertools.chain(*items.values())) as table:
            assert table.sync(Family.IPv4, []).refused == {}
            assert contents(table)["endpoints4-tcp"]["203.0.113.1", 80, 0][0].startswith("10.244.0.")  # type: ignore[index, union-attr]
            assert unordered(contents(table)) == unordered(contents(wanted))
            assert table.sync(Family.IPv4, []).transactions == 0
