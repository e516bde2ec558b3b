"""Metrics: what is counted when, and that figures read from the table are the connections that were
made.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from nftproxy.address import Family
from nftproxy.errors import KernelError
from nftproxy.kernel.reader import Counted
from nftproxy.lab import namespace
from nftproxy.lab.client import Refused, Silent
from nftproxy.model import EndpointSlice, ObjectName, Service
from nftproxy.monitoring.connections import Figure, Ledger
from nftproxy.monitoring.metrics import Metrics
from nftproxy.monitoring.tablefigures import TableFigures
from nftproxy.monitoring.trigger import TriggerTimes
from nftproxy.routes import Element, Verdict
from nftproxy.store import Store
from nftproxy.sync.report import Report
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.paths import ROOT
from tests.support.world import CLUSTER_IP, VIP, World

V4, V6 = Family.IPv4, Family.IPv6
START = 1_800_000_000.0  # 2027-01-15T08:00:00Z
WEB, CART = ObjectName("default", "web"), ObjectName("default", "cart")


class Clock:
    """Wall time that passes when told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def values(registry: CollectorRegistry, prefix: str = "") -> dict[str, float]:
    """All samples, by name and labels as they are written."""
    lines = [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line.startswith(prefix))
    }


def triggered(text: str, name: str = "", family: str = "IPv4") -> EndpointSlice:
    piece = endpoint_slice(endpoints=[endpoint("10.244.1.2")], name=name, family=family)
    annotated = {**msgspec.to_builtins(piece)}
    annotated["metadata"]["annotations"] = {
        "endpoints.kubernetes.io/last-change-trigger-time": text
    }
    return msgspec.convert(annotated, EndpointSlice)


def report(family: Family = V4, **options: object) -> Report:
    known = Report(family)
    for name, value in {"looked_at": {WEB: (None, ())}, **options}.items():
        setattr(known, name, value)
    return known


# ---- trigger times


@pytest.mark.contract("7.4.16")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2027-01-15T08:00:01Z", [START + 1], id="seconds"),
        pytest.param("2027-01-15T08:00:01.5Z", [START + 1.5], id="a fraction"),
        pytest.param("2027-01-15T08:00:01.123456789Z", [START + 1.123456], id="nanoseconds"),
        pytest.param("2027-01-15T10:00:01+02:00", [START + 1], id="another time zone"),
        pytest.param("2027-01-15T08:00:00Z", [], id="not later than our start"),
        pytest.param("2026-01-15T08:00:00Z", [], id="before our start"),
        pytest.param("", [], id="empty"),
        pytest.param("yesterday", [], id="no time at all"),
        pytest.param("2027-01-15T08:00:01", [], id="no time zone"),
    ],
)
def test_what_counts_as_a_trigger_time(text: str, expected: list[float]) -> None:
    times = TriggerTimes(START)
    times.changed(triggered(text))
    assert times.take_times([WEB]) == pytest.approx(expected)


@pytest.mark.contract("7.4.16")
def test_trigger_times_are_taken_by_the_sync_that_looked_at_their_service() -> None:
    times = TriggerTimes(START)
    for second in (1, 2):
        times.changed(triggered(f"2027-01-15T08:00:0{second}Z"))
    assert times.take_times([ObjectName("default", "other")]) == []
    assert times.take_times([WEB]) == [START + 1, START + 2], "one for each change"
    assert times.take_times([WEB]) == []


@pytest.mark.contract("7.4.16")
def test_a_deleted_slice_discards_its_services_trigger_times() -> None:
    times = TriggerTimes(START)
    times.changed(triggered("2027-01-15T08:00:01Z", name="a"))
    times.deleted(WEB)
    assert times.take_times([WEB]) == []


# ---- what the parts of the proxy tell


@pytest.mark.contract("7.4.1", "7.4.2", "7.4.3", "7.4.4", "7.4.10", "5.10.1", "5.10.2")
def test_syncs() -> None:
    clock = Clock()
    metrics = Metrics(Family, {}, clock=clock)
    metrics.sync_failed(V4, 0.5, full=True)
    clock.now += 10
    metrics.sync_done(report(), 0.003, full=False)
    metrics.sync_done(report(V6), 20, full=True)
    found = values(metrics.registry, "kubeproxy_sync_")
    counts = {
        (name, family): found.get(
            f'kubeproxy_sync_{name}duration_seconds_count{{ip_family="{family}"}}', 0
        )
        for name in ("proxy_rules_", "full_proxy_rules_", "partial_proxy_rules_")
        for family in Family
    }
    assert counts == {
        ("proxy_rules_", V4): 2,
        ("proxy_rules_", V6): 1,
        ("full_proxy_rules_", V4): 1,
        ("full_proxy_rules_", V6): 1,
        ("partial_proxy_rules_", V4): 1,
        ("partial_proxy_rules_", V6): 0,
    }
    assert (
        found['kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}'] == START + 10
    )
    failures = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total"
    assert [found[f'{failures}{{ip_family="{family}"}}'] for family in Family] == [1, 0]


@pytest.mark.contract("7.4.1", "7.4.14", "7.4.16")
def test_buckets() -> None:
    metrics = Metrics([V4], {})
    metrics.sync_done(report(), 1, full=True)
    metrics.conntrack_done(V4, 1, 0)
    metrics.slice_changed(triggered("2999-01-15T08:00:01Z"))
    metrics.sync_done(report(), 1, full=False)
    text = generate_latest(metrics.registry).decode()

    def bounds(name: str) -> list[str]:
        return [
            line.split('le="')[1].split('"')[0]
            for line in text.splitlines()
            if line.startswith(f"{name}_bucket")
        ]

    exponential = [f"{0.001 * 2**step:.3f}".rstrip("0") for step in range(15)] + ["+Inf"]
    for name in (
        "sync_proxy_rules",
        "sync_full_proxy_rules",
        "sync_partial_proxy_rules",
        "conntrack_reconciler_sync",
    ):
        assert bounds(f"kubeproxy_{name}_duration_seconds") == exponential
    latency = [0.25, 0.5, *map(float, (*range(1, 60), *range(60, 116, 5), *range(120, 301, 30)))]
    assert bounds("kubeproxy_network_programming_duration_seconds") == [*map(str, latency), "+Inf"]


@pytest.mark.contract("1.3.9", "7.4.5")
def test_when_a_sync_was_asked_for() -> None:
    clock = Clock()
    metrics = Metrics(Family, {}, clock=clock)
    metrics.queued(V4)
    clock.now += 5
    metrics.queued(V6)
    found = values(metrics.registry, "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds")
    assert list(found.values()) == [START, START + 5]


@pytest.mark.contract("7.4.6", "7.4.7", "1.3.10")
def test_changes_seen_and_pending() -> None:
    metrics = Metrics(Family, {})
    store = Store(Family, metrics)
    name = "kubeproxy_sync_proxy_rules_{}_changes_{}"

    def found() -> dict[str, float]:
        return {
            f"{what} {which}": metrics.registry.get_sample_value(name.format(what, which)) or 0
            for what in ("service", "endpoint")
            for which in ("total", "pending")
        }

    def sync(family: Family) -> None:
        taken = store.take_dirty(family)
        metrics.sync_done(report(family, looked_at=taken.services), 0, full=False)

    store.put(service())
    store.put(endpoint_slice(endpoints=[endpoint("10.244.1.2")]))
    store.put(endpoint_slice(endpoints=[endpoint("fd00::2")], family="IPv6", name="six"))
    store.put(endpoint_slice(family="FQDN", name="fqdn"))
    assert found() == {
        "service total": 2,
        "service pending": 2,
        "endpoint total": 2,
        "endpoint pending": 2,
    }
    sync(V4)
    assert found() == {
        "service total": 2,
        "service pending": 1,
        "endpoint total": 2,
        "endpoint pending": 1,
    }
    metrics.sync_failed(V6, 0, full=False)
    assert found()["service pending"] == 1, "a failed sync applies nothing"
    sync(V6)
    assert found() == {
        "service total": 2,
        "service pending": 0,
        "endpoint total": 2,
        "endpoint pending": 0,
    }
    store.remove(EndpointSlice, ObjectName("default", "six"))
    assert found() == {
        "service total": 2,
        "service pending": 0,
        "endpoint total": 3,
        "endpoint pending": 1,
    }


@pytest.mark.contract("7.4.8", "7.4.16", "5.11")
def test_latency_of_endpoint_changes() -> None:
    clock = Clock()
    metrics = Metrics(Family, {}, clock=clock)
    metrics.slice_changed(triggered("2027-01-15T08:00:01Z"))
    metrics.slice_changed(triggered("2027-01-15T08:00:02Z", family="IPv6"))
    clock.now += 4
    metrics.sync_failed(V4, 0.1, full=False)
    metrics.sync_done(report(V4), 0.1, full=False)
    name = "kubeproxy_network_programming_duration_seconds"
    assert metrics.registry.get_sample_value(f"{name}_sum", {"ip_family": "IPv4"}) == pytest.approx(
        3
    )
    assert metrics.registry.get_sample_value(f"{name}_count", {"ip_family": "IPv6"}) is None, (
        "each family for itself"
    )
    metrics.slice_changed(triggered("2027-01-15T08:00:03Z", name="a"))
    metrics.slice_deleted(triggered("2027-01-15T08:00:03Z", name="b"))
    metrics.sync_done(report(V4), 0.1, full=False)
    assert metrics.registry.get_sample_value(f"{name}_count", {"ip_family": "IPv4"}) == 1


@pytest.mark.contract("7.4.4")
def test_the_check_of_a_sync_in_operations_finds_families_that_have_synced() -> None:
    """It is for kube-proxy, too: a family has no line before its first sync that succeeds."""
    page = (ROOT / "docs/operations.md").read_text()
    (name,) = re.findall(r"localhost:10249/metrics \| grep \^(\w+)", page)
    metrics = Metrics(Family, {})

    def found() -> list[str]:
        return re.findall(rf"^{name}.*", generate_latest(metrics.registry).decode(), re.MULTILINE)

    metrics.sync_failed(V4, 0.1, full=True)
    assert found() == []
    metrics.sync_done(report(V4), 0.1, full=True)
    assert [line.partition(" ")[0] for line in found()] == [f'{name}{{ip_family="IPv4"}}']


@pytest.mark.contract("7.4.9")
def test_no_local_endpoints() -> None:
    metrics = Metrics(Family, {})
    metrics.sync_done(report(), 0, full=True, without_local_endpoints=(2, 3))
    name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    found = values(metrics.registry, name)
    assert found == {
        f'{name}{{ip_family="{family}",traffic_policy="{policy}"}}': value
        for (family, policy), value in zip(
            itertools.product(Family, ("internal", "external")), (2, 3, 0, 0), strict=True
        )
    }


@pytest.mark.contract("6.2.8", "7.4.11", "7.4.14", "7.4.15", "7.4.17")
def test_other_counters() -> None:
    metrics = Metrics(Family, {})
    metrics.tidying_failed(V4)
    metrics.conntrack_done(V6, 0.5, 7)
    metrics.requested(code="200", method="GET", host="api:6443", seconds=0.2)
    metrics.requested(code="<error>", method="GET", host="api:6443", seconds=10)
    metrics.watch_restarted("services")
    metrics.repaired(V4)
    metrics.sync_done(
        report(written=3, transactions=2, read_back=True, refused={WEB: "why"}),
        0,
        full=True,
        stages={"compile": 0.25},
    )
    found = values(metrics.registry)
    expected = {
        'kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family="IPv4"}': 1,
        'kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"}': 7,
        'kubeproxy_conntrack_reconciler_sync_duration_seconds_sum{ip_family="IPv6"}': 0.5,
        'rest_client_requests_total{code="200",host="api:6443",method="GET"}': 1,
        'rest_client_request_duration_seconds_bucket{host="api:6443",le="0.25",verb="GET"}': 1,
        'rest_client_request_duration_seconds_count{host="api:6443",verb="GET"}': 2,
        'nftproxy_watch_restarts_total{resource="services"}': 1,
        'nftproxy_repairs_total{ip_family="IPv4"}': 1,
        'nftproxy_read_backs_total{ip_family="IPv4"}': 1,
        'nftproxy_elements_written_total{ip_family="IPv4"}': 3,
        'nftproxy_transactions_total{ip_family="IPv4"}': 2,
        'nftproxy_services_refused{ip_family="IPv4"}': 1,
        'nftproxy_sync_stage_duration_seconds_sum{ip_family="IPv4",stage="compile"}': 0.25,
    }
    assert {name: found[name] for name in expected} == expected


def test_a_refused_service_counts_until_it_is_accepted() -> None:
    metrics = Metrics([V4], {})
    counts = []
    for refused, looked_at in (({WEB: "why"}, [WEB]), ({}, [CART]), ({}, [WEB])):
        metrics.sync_done(
            report(refused=refused, looked_at=dict.fromkeys(looked_at)), 0, full=False
        )
        counts.append(values(metrics.registry)['nftproxy_services_refused{ip_family="IPv4"}'])
    assert counts == [1, 1, 0]


@pytest.mark.contract("7.4.17", "7.4.18")
def test_what_this_is() -> None:
    metrics = Metrics(Family, {"AllAlpha": True, "ComponentFlagz": False})
    found = values(metrics.registry)
    names = {name.partition("{")[0] for name in found}
    assert {
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    } <= names
    build = next(name for name in found if name.startswith("kubernetes_build_info"))
    assert 'major="1"' in build
    assert 'minor="37"' in build
    assert 'git_version="v1.37.0+nftproxy.' in build
    assert found[build] == 1
    assert found['kubernetes_feature_enabled{name="ComponentFlagz",stage="BETA"}'] == 0
    assert found['kubernetes_feature_enabled{name="LoggingAlphaOptions",stage="ALPHA"}'] == 1
    assert found['kubernetes_feature_enabled{name="NFTablesProxyMode",stage=""}'] == 1
    assert not [
        name
        for name in names
        if "iptables" in name or name.startswith("go_") or name.endswith("_created")
    ]


# ---- figures from counters, without a kernel

NAME = "default/web:http"
ADDRESS = ("10.96.0.10", "tcp", 80)


def counted(where: str, packets: int, value: Verdict | tuple[str, int] | None = None) -> Counted:
    key = ("10.96.0.10", 80, 0) if "endpoints" in where and where[:3] != "no_" else ADDRESS
    if value is None:
        value = Verdict("goto", "pick4-tcp-2", NAME)
    return Counted(Element(where, key, None if where.startswith("new_clients") else value), packets)


def reading(**packets: int) -> list[Counted]:
    """Counters of one frontend, in the order of readings: refused, new clients, all.

    `e` is that of a slot.
    """
    names = {"n": "no_endpoints4", "c": "new_clients4", "v": "services4", "e": "endpoints4-tcp"}
    return [
        counted(where, packets[short], ("10.244.1.2", 8080) if short == "e" else None)
        for short, where in names.items()
        if short in packets
    ]


def by_map(elements: Iterable[Counted]) -> dict[str, list[Counted]]:
    maps: dict[str, list[Counted]] = {}
    for each in elements:
        maps.setdefault(each.element.where, []).append(each)
    return maps


def enter(ledger: Ledger, elements: Iterable[Counted]) -> None:
    ledger.enter(by_map(elements).items())


def totals(ledger: Ledger) -> dict[str, int]:
    return {figure.name.lower(): value for (figure, _), value in ledger.figures.items()}


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        pytest.param([{"v": 3}], {"connections": 3}, id="an ordinary frontend"),
        pytest.param([{"v": 3}, {"v": 3}, {"v": 7}], {"connections": 7}, id="read again and again"),
        pytest.param([{"v": 0}], {}, id="nobody came"),
        pytest.param([{"v": 9}, {"v": 2}], {"connections": 11}, id="rewritten in between"),
        pytest.param(
            [{"v": 0, "c": 0}, {"v": 10, "c": 4}],
            {"connections": 10, "by_affinity": 6},
            id="affinity: who is not known is in both",
        ),
        pytest.param(
            [{"v": 0, "c": 0}, {"v": 10, "c": 0}],
            {"connections": 10, "by_affinity": 10},
            id="only known clients",
        ),
        pytest.param(
            [{"v": 0, "c": 0}, {"v": 10, "c": 10}], {"connections": 10}, id="only new clients"
        ),
        pytest.param(
            [{"v": 10, "n": 4}],
            {"connections": 6, "refused": 4},
            id="policy Local, no endpoint here",
        ),
        pytest.param(
            [{"v": 0, "c": 0, "n": 0}, {"v": 10, "c": 8, "n": 4}],
            {"connections": 6, "by_affinity": 2, "refused": 4},
            id="the same with affinity",
        ),
        pytest.param(
            [{"v": 10, "c": 4}],
            {"connections": 10},
            id="affinity of a frontend that was never read before",
        ),
        pytest.param([{"n": 5}], {"refused": 5}, id="no endpoint at all"),
        pytest.param([{"n": 5}, {"v": 2}], {"refused": 5, "connections": 2}, id="endpoints came"),
        pytest.param([{"v": 2}, {"n": 5}], {"refused": 5, "connections": 2}, id="endpoints went"),
        pytest.param(
            [{"v": 5}, {"v": 6, "c": 1}], {"connections": 6}, id="affinity was switched on"
        ),
        pytest.param(
            [{"v": 0, "c": 0}, {"v": 9, "c": 5}, {"v": 10}],
            {"connections": 10, "by_affinity": 4},
            id="and off",
        ),
        pytest.param(
            [{"v": 0, "c": 0}, {"v": 9, "c": 4}, {"v": 3, "c": 5}],
            {"connections": 12, "by_affinity": 5},
            id="only services rewritten",
        ),
        pytest.param([{"v": 3, "e": 3}], {"connections": 3, "endpoint": 3}, id="an endpoint"),
        pytest.param(
            [{"v": 3, "e": 3}, {"v": 0, "e": 5}],
            {"connections": 3, "endpoint": 5},
            id="its slot stayed",
        ),
    ],
)
def test_ledger(readings: list[dict[str, int]], expected: dict[str, int]) -> None:
    ledger = Ledger(limit=100)
    for packets in readings:
        enter(ledger, reading(**packets))
    assert totals(ledger) == expected


def test_ledger_begins_with_what_it_finds() -> None:
    ledger = Ledger(limit=100)
    ledger.open(by_map(reading(v=100, e=60)).items())
    enter(ledger, reading(v=103, e=61))
    assert totals(ledger) == {"connections": 3, "endpoint": 1}


def test_ledger_knows_a_rewrite_by_its_value() -> None:
    ledger = Ledger(limit=100)
    enter(ledger, [counted("services4", 5, Verdict("goto", "pick4-tcp-2", NAME))])
    enter(ledger, [counted("services4", 8, Verdict("goto", "pick4-tcp-3", NAME))])
    assert totals(ledger) == {"connections": 13}, (
        "8 since the rewrite, though that is more than before it"
    )


def test_ledger_forgets_what_is_gone() -> None:
    ledger = Ledger(limit=100)
    enter(ledger, reading(v=5, e=5))
    moved = Counted(Element("endpoints4-tcp", ("10.96.0.10", 80, 0), ("10.244.9.9", 8080)), 1)
    enter(ledger, [*reading(v=6), moved])
    assert {subject.labels()[1:]: value for (_, subject), value in ledger.figures.items()} == {
        ("default", "web", "http", "10.96.0.10:80/tcp"): 6,
        ("default", "web", "http", "10.244.9.9:8080"): 1,
    }
    enter(ledger, [counted("services4", 1, Verdict("goto", "pick4-tcp-2", "default/other:http"))])
    assert [subject.labels()[2] for _, subject in ledger.figures] == ["other"], (
        "another Service has the frontend now"
    )
    enter(ledger, [])
    assert not ledger.figures


def test_ledger_has_a_limit() -> None:
    def frontends(*ports: int) -> list[Counted]:
        return [
            Counted(
                Element(
                    "services4",
                    ("10.96.0.10", "tcp", port),
                    Verdict("goto", "pick4-tcp-1", f"default/s{port}"),
                ),
                port,
            )
            for port in ports
        ]

    ledger = Ledger(limit=2)
    enter(ledger, frontends(1, 2, 3, 4))
    assert [subject.labels()[2] for _, subject in ledger.figures] == ["s1", "s2"]
    assert ledger.left_out == 2
    enter(ledger, frontends(2, 3, 4))
    assert ledger.left_out == 0, "nobody came to the others since"
    enter(ledger, [])
    enter(ledger, frontends(3, 4))
    assert [subject.labels()[2] for _, subject in ledger.figures] == ["s3", "s4"], (
        "room for others now"
    )


def test_labels() -> None:
    ledger = Ledger(limit=100)
    enter(
        ledger,
        [
            Counted(
                Element(
                    "nodeport_services6",
                    ("udp", 30053),
                    Verdict("goto", "x", "kube-system/dns:dns"),
                ),
                1,
            ),
            Counted(
                Element("services6", ("fd00::a", "tcp", 80), Verdict("goto", "x", "default/plain")),
                1,
            ),
            Counted(Element("local_endpoints6-tcp", ("fd00::a", 80, 0), ("fd00:1::2", 8080)), 1),
            Counted(Element("nodeport_endpoints6-udp", (30053, 3), ("fd00:1::3", 5353)), 1),
        ],
    )
    assert {subject.labels() for _, subject in ledger.figures} == {
        ("IPv6", "kube-system", "dns", "dns", "*:30053/udp"),
        ("IPv6", "default", "plain", "", "[fd00::a]:80/tcp"),
        ("IPv6", "default", "plain", "", "[fd00:1::2]:8080"),
        ("IPv6", "kube-system", "dns", "dns", "[fd00:1::3]:5353"),
    }


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("connect"), st.sampled_from(["known", "new"]), st.integers(0, 4)),
            st.tuples(st.just("rewrite"), st.sampled_from(["v", "c", "e"]), st.just(0)),
            st.tuples(st.just("read"), st.just(""), st.just(0)),
        )
    )
)
def test_figures_only_grow_and_never_count_twice(steps: list[tuple[str, str, int]]) -> None:
    """A frontend with affinity.

    Whatever is rewritten and read when, no figure is above the truth, with one exception: a counter
    that began anew and reached its old value between two readings looks as if it had stood still.
    """
    ledger, counters, truth = Ledger(limit=100), Counter(), Counter()  # type: ignore[var-annotated]
    last_read: Counter[str] = Counter()
    anew = False
    generation: Counter[str] = Counter()
    before: dict[str, int] = {}
    for step, what, amount in [("read", "", 0), *steps, ("read", "", 0)]:
        if step == "connect":
            counters["v"] += amount
            truth["connections"] += amount
            for counter, figure in (
                (("c", ""), ("e", "endpoint")) if what == "new" else (("", "by_affinity"),)
            ):
                counters[counter] += amount
                truth[figure] += amount
        elif step == "rewrite":
            counters[what] = 0
            if what == "c":
                # Affinity was switched off, and on again: the verdict is the one of before
                counters["v"] = 0
                anew = True
            generation[what] += 1
        else:
            enter(
                ledger,
                [
                    counted("new_clients4", counters["c"]),
                    counted(
                        "services4", counters["v"], Verdict("goto", f"pick{generation['v']}", NAME)
                    ),
                    counted("endpoints4-tcp", counters["e"], ("10.244.1.2", 8080)),
                ],
            )
            if anew and counters["c"] >= last_read["c"] > 0:
                truth["by_affinity"] = 1 << 32
            last_read, anew = counters.copy(), False
            now = totals(ledger)
            assert all(now.get(figure, 0) >= value for figure, value in before.items())
            assert all(value <= truth[figure] for figure, value in now.items())
            before = now
    if not any(generation.values()):
        assert totals(ledger) == {
            figure: count for figure, count in truth.items() if figure and count
        }


# ---- figures from a real table


class Scrapes:
    """What a scrape of node1 gave more than the one before."""

    def __init__(self, world: World, *, endpoints: bool = True, limit: int = 1000) -> None:
        self.metrics = Metrics(Family, {})
        with namespace.enter(world.lab.place("node1").namespace):
            self.collector = TableFigures(Family, endpoints=endpoints, limit=limit)
        self.metrics.registry.register(self.collector)
        self._before: Counter[tuple[str, ...]] = Counter()

    def close(self) -> None:
        self.collector.close()

    def grown(self, name: str) -> dict[tuple[str, ...], int]:
        """Growth of a metric, by service and frontend or endpoint."""
        now: Counter[tuple[str, ...]] = Counter()
        for metric in self.metrics.registry.collect():
            for sample in metric.samples:
                if sample.name == f"nftproxy_{name}_total":
                    labels = sample.labels
                    place = labels.get("frontend") or labels["endpoint"]
                    now[name, labels["service"], place] += int(sample.value)
        grown = {
            key[1:]: count - self._before[key]
            for key, count in now.items()
            if count != self._before[key]
        }
        self._before.update({(name, *key): count for key, count in grown.items()})
        return grown


@pytest.fixture(scope="module")
def built() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def world(built: World) -> Iterator[World]:
    yield built
    for table in built.tables.values():
        table.store.replace(Service, [])
        table.store.replace(EndpointSlice, [])
    built.sync()


@pytest.fixture
def scrapes(world: World) -> Iterator[Scrapes]:
    with closing(Scrapes(world)) as found:
        yield found


@pytest.fixture(params=["TCP", "UDP"])
def proto(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(Family), ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


def wire(host: str, port: int, proto: str) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}/{proto.lower()}"


def test_connections_of_every_kind_of_frontend(
    world: World, scrapes: Scrapes, family: Family, proto: str
) -> None:
    """From a pod, the node itself and outside, to ClusterIP, VIP and NodePort.

    Each connection once, at its frontend.
    """
    cluster_ip, vip, node = CLUSTER_IP[family], VIP[family], world.address("node1", family)
    world.apply(
        service(cluster_ip=cluster_ip, vips=[vip], node_port=30080, protocol=proto),
        world.endpoints("pod1-1", "pod2-1", family=family, protocol=proto),
    )
    scrapes.grown("frontend_connections")
    answered: Counter[str] = Counter()
    for where, address, port, times in [
        ("pod1-2", cluster_ip, 80, 5),
        ("node1", cluster_ip, 80, 4),
        ("pod1-1", cluster_ip, 80, 6),  # sometimes itself
        ("client", vip, 80, 3),
        ("node1", node, 30080, 2),
        ("client", node, 30080, 1),
    ]:
        answered += world.answers(where, address, port, proto, times=times)
    assert scrapes.grown("frontend_connections") == {
        ("web", wire(cluster_ip, 80, proto)): 15,
        ("web", wire(vip, 80, proto)): 3,
        ("web", f"*:30080/{proto.lower()}"): 3,
    }
    assert scrapes.grown("endpoint_connections") == {
        ("web", wire(world.address(pod, family), 8080, "").rstrip("/")): times
        for pod, times in answered.items()
    }
    assert scrapes.grown("frontend_affinity_connections") == {}


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_connections_with_affinity(
    world: World, scrapes: Scrapes, family: Family, proto: str, policy: str
) -> None:
    """Each client's first connection is an endpoint's, the others are affinity's.

    The sum is the frontend's.
    """
    cluster_ip, vip = CLUSTER_IP[family], VIP[family]
    # What the kernel remembers of a name outlives the Service for a moment
    name = f"{policy}-{proto}".lower()
    world.apply(
        service(
            name,
            cluster_ip,
            vips=[vip],
            protocol=proto,
            sessionAffinity="ClientIP",
            externalTrafficPolicy=policy,
        ),
        world.endpoints("pod1-1", "pod1-3", "pod2-1", of=name, family=family, protocol=proto),
    )
    scrapes.grown("frontend_connections")
    for where, address in [
        ("pod1-2", cluster_ip),
        ("node1", cluster_ip),
        ("client", vip),
        ("pod1-2", vip),
    ]:
        world.answers(where, address, 80, proto, times=5)
    expected = {(name, wire(cluster_ip, 80, proto)): 10, (name, wire(vip, 80, proto)): 10}
    assert scrapes.grown("frontend_connections") == expected
    picked = sum(scrapes.grown("endpoint_connections").values())
    by_affinity = sum(scrapes.grown("frontend_affinity_connections").values())
    assert picked + by_affinity == 20
    assert picked == 3, (
        "three clients; the pod is known at the second frontend, which has the same memory"
    )


def test_connections_with_policy_local(
    world: World, scrapes: Scrapes, family: Family, proto: str
) -> None:
    """Outside clients fall through `internal` to the local list, and are one connection all the
    same.
    """
    cluster_ip, vip = CLUSTER_IP[family], VIP[family]
    world.apply(
        service(cluster_ip=cluster_ip, vips=[vip], protocol=proto, externalTrafficPolicy="Local"),
        world.endpoints("pod1-1", "pod2-1", family=family, protocol=proto),
    )
    scrapes.grown("frontend_connections")
    world.answers("pod1-2", vip, 80, proto, times=4)
    assert world.answers("client", vip, 80, proto, times=3) == {"pod1-1": 3}
    assert scrapes.grown("frontend_connections") == {("web", wire(vip, 80, proto)): 7}
    assert sum(scrapes.grown("endpoint_connections").values()) == 7


def test_refused_with_policy_local(world: World, scrapes: Scrapes, family: Family) -> None:
    """No endpoint here: pods are served by the cluster list, outside clients dropped.

    Each is counted as what happened to it.
    """
    vip = VIP[family]
    world.apply(
        service(
            cluster_ip=CLUSTER_IP[family], vips=[vip], protocol="UDP", externalTrafficPolicy="Local"
        ),
        world.endpoints("pod2-1", family=family, protocol="UDP"),
    )
    scrapes.grown("frontend_connections")
    world.answers("pod1-2", vip, 80, "UDP", times=4)
    for _ in range(2):
        assert isinstance(world.connect("client", vip, 80, "UDP", timeout=0.05), Silent)
    assert scrapes.grown("frontend_connections") == {("web", wire(vip, 80, "UDP")): 4}
    assert scrapes.grown("frontend_refused_packets") == {("web", wire(vip, 80, "UDP")): 2}


def test_refused_without_endpoints(
    world: World, scrapes: Scrapes, family: Family, proto: str
) -> None:
    cluster_ip = CLUSTER_IP[family]
    world.apply(service(cluster_ip=cluster_ip, protocol=proto))
    for _ in range(3):
        assert isinstance(world.connect("pod1-1", cluster_ip, 80, proto), Refused)
    assert scrapes.grown("frontend_refused_packets") == {("web", wire(cluster_ip, 80, proto)): 3}
    assert scrapes.grown("frontend_connections") == {}


def test_figures_grow_through_rewrites_and_restarts(world: World, scrapes: Scrapes) -> None:
    """Every change of the endpoints rewrites elements; a reload of the program keeps them."""
    made = 0
    web = service(cluster_ip=CLUSTER_IP[V4])
    for pods in (["pod1-1"], ["pod1-1", "pod2-1"], ["pod2-1"], ["pod1-1", "pod2-1", "pod1-3"]):
        world.apply(web, world.endpoints(*pods))
        made += world.answers("pod1-2", CLUSTER_IP[V4], 80, times=6).total()
        scrapes.grown("frontend_connections")
    table = world.tables["node1"]
    table.kernel.load(table.program)
    world.sync()
    made += world.answers("pod1-2", CLUSTER_IP[V4], 80, times=6).total()
    scrapes.grown("frontend_connections")
    figures = scrapes.collector._ledger.figures
    assert [value for (figure, _), value in figures.items() if figure is Figure.CONNECTIONS] == [
        made
    ]

    with closing(Scrapes(world)) as again:
        assert again.grown("frontend_connections") == {}, "a process that starts begins at 0"
        world.ask("pod1-2", CLUSTER_IP[V4], 80)
        assert again.grown("frontend_connections") == {("web", wire(CLUSTER_IP[V4], 80, "TCP")): 1}


def test_endpoints_only_where_asked_for(world: World) -> None:
    world.apply(service(cluster_ip=CLUSTER_IP[V4]), world.endpoints("pod1-1"))
    with closing(Scrapes(world, endpoints=False)) as scrapes:
        world.ask("pod1-2", CLUSTER_IP[V4], 80)
        assert scrapes.grown("endpoint_connections") == {}
        assert len(scrapes.grown("frontend_connections")) == 1


def test_series_beyond_the_limit(world: World) -> None:
    world.apply(
        service("a", "10.96.0.21"),
        service("b", "10.96.0.22"),
        world.endpoints("pod1-1", of="a", name="a"),
        world.endpoints("pod1-1", of="b", name="b"),
    )
    with closing(Scrapes(world, endpoints=False, limit=1)) as scrapes:
        for address in ("10.96.0.21", "10.96.0.22"):
            world.ask("pod1-2", address, 80)
        found = values(scrapes.metrics.registry, "nftproxy_")
    assert len([name for name in found if name.startswith("nftproxy_frontend_connections")]) == 1
    assert found["nftproxy_series_left_out"] == 1


def test_elements_by_map(world: World, scrapes: Scrapes) -> None:
    world.apply(
        service("a", "10.96.0.21", sessionAffinity="ClientIP"),
        service("b", "10.96.0.22", sessionAffinity="ClientIP"),
        world.endpoints("pod1-1", "pod2-1", of="a", name="a"),
        world.endpoints("pod1-1", "pod2-1", of="b", name="b"),
    )
    found = values(scrapes.metrics.registry, "nftproxy_map_elements")
    sizes = {name.split('"')[1]: int(size) for name, size in found.items()}
    expected = {
        "services4": 2,
        "endpoints4-tcp": 4,
        "cluster_ips4": 2,
        "cluster_members4": 4,
        "new_clients4": 2,
        "services6": 0,
    }
    assert {name: sizes[name] for name in expected} == expected
    assert not [name for name in sizes if "default" in name], (
        "what each service has of its own counts together"
    )


def test_without_a_table_figures_stay(world: World) -> None:
    """The table of node2: someone deletes it.

    Nothing fails, and the figures of before are shown.
    """
    world.apply(service(cluster_ip=CLUSTER_IP[V4]), world.endpoints("pod2-1"))
    table = world.tables["node2"]
    registry = CollectorRegistry()
    with namespace.enter(world.lab.place("node2").namespace):
        collector = TableFigures([V4])
    with closing(collector):
        registry.register(collector)
        world.ask("pod2-2", CLUSTER_IP[V4], 80)
        before = values(registry, "nftproxy_frontend")
        assert list(before.values()) == [1]
        table.kernel.delete_table()
        assert values(registry, "nftproxy_frontend") == before
        for syncer in table.syncers.values():
            syncer.distrust()
        world.sync()
        world.ask("pod2-2", CLUSTER_IP[V4], 80)
        assert list(values(registry, "nftproxy_frontend").values()) == [2]


def test_a_table_that_cannot_be_read(
    world: World, scrapes: Scrapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.apply(service(cluster_ip=CLUSTER_IP[V4]), world.endpoints("pod1-1"))
    world.ask("pod1-2", CLUSTER_IP[V4], 80)
    before = values(scrapes.metrics.registry, "nftproxy_frontend")

    def fail() -> bool:
        raise KernelError("the table changes too fast to be read")

    monkeypatch.setattr(scrapes.collector._reader, "table_exists", fail)
    after = values(scrapes.metrics.registry, "nftproxy_")
    assert {name: after[name] for name in before} == before
    assert after["nftproxy_table_read_failures_total"] == 1
