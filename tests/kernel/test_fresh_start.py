"""Whatever happened before, the table is what a fresh start would make of it (contract 1.3, 2.2,
5.7).
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from nftproxy.address import Family
from nftproxy.model import EndpointSlice, Object, ObjectName, Service
from nftproxy.store import Store
from nftproxy.sync import compilation, firstload
from nftproxy.sync.table import Table
from nftproxy.table import plan as plan_module
from tests.support.objects import endpoint, endpoint_slice, node, service
from tests.support.tables import (
    bare_table,
    contents,
    deliver,
    names,
    new_namespace,
    table_in,
    unordered,
)

SERVICES = ("a", "b", "c")
PODS = tuple(f"10.244.{node}.{pod}" for node in (1, 2) for pod in (2, 3, 4))
SHARED = ("203.0.113.1", "203.0.113.2")
RANGES = (
    ["198.51.100.0/24"],
    ["198.51.100.0/24", "192.168.50.0/24"],
    ["10.0.0.0/8", "0.0.0.0/0"],
    ["192.168.50.11/32"],
)


@st.composite
def services(draw: st.DrawFn) -> Service:
    name = draw(st.sampled_from(SERVICES))
    protocols = {"http": "TCP", "alt": "TCP", "dns": "UDP"}
    ports = [
        {
            "name": port,
            "protocol": protocols[port],
            "port": number,
            "nodePort": draw(st.sampled_from([0, 30080, 30081])),
        }
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
        "sessionAffinityConfig": {
            "clientIP": {"timeoutSeconds": draw(st.sampled_from([100, 200]))}
        },
        "loadBalancerSourceRanges": draw(st.sampled_from([[], *RANGES])),
        "created": draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
    }
    cluster_ip = draw(
        st.sampled_from([f"10.96.0.{10 + SERVICES.index(name)}", "10.96.0.10", SHARED[0], "None"])
    )
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
            **draw(
                st.sampled_from(
                    [{}, {}, {"zones": ["east"]}, {"zones": ["west"]}, {"nodes": ["node1"]}]
                )
            ),
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
    portion=st.sampled_from([1, compilation.PORTION]),
    batch=st.sampled_from([1, plan_module.BATCH]),
)
@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_sequence_of_changes_ends_as_a_fresh_start(
    steps: list[Any],
    portion: int,
    batch: int,
    netns: str,
    reference: Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever happens in between.

    Syncs, restarts with nothing but the table, tidying, services that fight for an address.
    """
    monkeypatch.setattr(compilation, "PORTION", portion)
    for module in (plan_module, firstload):
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
                    assert unordered(contents(table)) == fresh(reference, objects), names(
                        objects.values()
                    )
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
        assert (report.transactions, report.read_back) == (0, True), (
            "a restart with nothing changed writes nothing"
        )


@pytest.mark.contract("2.2.3", "5.7.8")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize(
    "before", [None, 0, 1, 2], ids=["first start", "0 had it", "1 had it", "2 had it"]
)
@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_rivals_at_a_start(
    order: tuple[int, ...], before: int | None, affinity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order services are looked at, and whoever had the frontend before."""

    def one_by_one(
        services: dict[ObjectName, Any], _: int | None
    ) -> Iterator[dict[ObjectName, Any]]:
        names = [ObjectName("default", f"s{number}") for number in order]
        return ({name: services[name]} for name in names if name in services)

    monkeypatch.setattr(compilation, "_portions", one_by_one)
    spec: dict[str, Any] = {"externalIPs": ["203.0.113.1"], "sessionAffinity": affinity}
    items: dict[int, list[Object]] = {
        number: [
            service(
                f"s{number}",
                f"10.96.0.{10 + number}",
                created=f"2026-01-0{number + 1}T00:00:00Z",
                **spec,
            ),
            endpoint_slice(
                f"s{number}", [endpoint(f"10.244.{number}.{pod}") for pod in range(2, 5 - number)]
            ),
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
            slot = contents(table)["endpoints4-tcp"]["203.0.113.1", 80, 0]
            assert str(slot).startswith("('10.244.0.")
            assert unordered(contents(table)) == unordered(contents(wanted))
            assert table.sync(Family.IPv4, []).transactions == 0


@pytest.mark.contract("2.2.3", "5.7.8")
def test_a_restart_between_rivals_who_both_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by its ClusterIP, the other by its age: a new process writes nothing, in any portions."""
    own, shared = SHARED
    rivals = [
        service("young", own, created="2026-01-02T00:00:00Z", externalIPs=[shared]),
        service("old", "10.96.0.11", created="2026-01-01T00:00:00Z", externalIPs=[own, shared]),
        service("middle", "10.96.0.12", created="2026-01-01T12:00:00Z", externalIPs=[shared]),
    ]
    monkeypatch.setattr(compilation, "PORTION", 1)
    with bare_table() as first:
        deliver(first, *rivals)
        first.sync(Family.IPv4, [])
        for order in itertools.permutations(rivals):
            again = Table(first.settings, Store(first.settings.families), first.kernel)
            deliver(again, *order)
            assert again.sync(Family.IPv4, []).transactions == 0
