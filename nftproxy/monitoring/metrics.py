"""All metrics.

Those that kube-proxy has in nftables mode (contract 7.4), under its names, and our own, with the
prefix `nftproxy_`.

An instance has a registry of its own. The parts of the proxy call its methods, each from any
thread. Nothing here queries other parts, except the collectors, which work during a scrape.
"""

import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from nftproxy.address import Family
from nftproxy.configuration import featuregates
from nftproxy.configuration.settings import LOCALHOST_GATE
from nftproxy.model import EndpointSlice, ObjectName
from nftproxy.monitoring.trigger import TriggerTimes
from nftproxy.sync.report import Report

KUBERNETES = (1, 37, 0)
"""The release of kube-proxy that this one replaces."""

EXPONENTIAL = tuple(0.001 * 2**step for step in range(15))
LATENCY = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))  # contract 7.4.16
REQUESTS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)  # contract 7.4.17
_FAMILY = ("ip_family",)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}  # in the spelling of Kubernetes

disable_created_metrics()  # type: ignore[no-untyped-call] # the original has no *_created beside its counters, and they would nearly double the answer


class Metrics:
    """The metrics of one process that serves `families`.

    `gates` are the feature gates that are set.
    """

    def __init__(
        self,
        families: Iterable[Family],
        gates: Mapping[str, bool],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = CollectorRegistry()
        self.slis = CollectorRegistry()  # for the path /metrics/slis
        self._families = tuple(families)
        self._clock = clock
        self._latency = {family: TriggerTimes(clock()) for family in self._families}
        self._pending = {family: _Pending() for family in self._families}
        # Services that keep an old state, because the kernel refused the new one
        self._keeping: dict[Family, set[ObjectName]] = {family: set() for family in self._families}
        self._make_sync()
        self._make_rest()
        self._make_own()
        if featuregates.enabled(gates, LOCALHOST_GATE):
            self._make_localhost()
        _describe(self.registry, gates)
        ProcessCollector(registry=self.registry)

    def service_changed(self, name: ObjectName) -> None:
        """Count a change of a Service; call before a sync can apply it."""
        for pending in self._pending.values():
            pending.service(name)
            self._service_changes.inc()

    def slice_changed(self, piece: EndpointSlice) -> None:
        """Count an EndpointSlice that is new or different; call before a sync can apply it."""
        for family in self._families:
            if family == piece.address_type:
                self._endpoint_changes.inc()
                self._pending[family].slice(piece)
                self._latency[family].changed(piece)

    def slice_deleted(self, piece: EndpointSlice) -> None:
        """Count the deletion of an EndpointSlice; call before a sync can apply it."""
        for family in self._families:
            if family == piece.address_type:
                self._endpoint_changes.inc()
                self._pending[family].slice(piece)
                if piece.service:
                    self._latency[family].deleted(piece.service)

    def queued(self, family: Family) -> None:
        """Note that a sync is due, or that the runner has started (contract 7.4.5)."""
        self._last_queued.labels(family).set(self._clock())

    def sync_done(
        self,
        report: Report,
        seconds: float,
        *,
        full: bool,
        stages: Mapping[str, float] | None = None,
        without_local_endpoints: tuple[int, int] = (0, 0),
    ) -> None:
        """Record a sync that succeeded.

        `stages` are the seconds that each part took; `without_local_endpoints` counts the service
        ports with a policy Local whose endpoints are all elsewhere: internal, external.
        """
        family, now = report.family, self._clock()
        self._sync_took(family, seconds, full=full)
        for trigger in self._latency[family].take_times(report.looked_at):
            self._programming.labels(family).observe(now - trigger)
        for policy, count in zip(("internal", "external"), without_local_endpoints, strict=True):
            self._no_local.labels(policy, family).set(count)
        self._last_sync.labels(family).set(now)
        self._pending[family].done(report.looked_at)
        for stage, part in (stages or {}).items():
            self._stages.labels(family, stage).observe(part)
        self._written.labels(family).inc(report.written)
        self._transactions.labels(family).inc(report.transactions)
        kept = self._keeping[family] - report.looked_at.keys() | report.refused.keys()
        self._keeping[family] = kept
        self._refused.labels(family).set(len(kept))
        if report.read_back:
            self._read_backs.labels(family).inc()

    def sync_failed(self, family: Family, seconds: float, *, full: bool) -> None:
        """Record a sync that failed; its changes stay pending."""
        self._sync_took(family, seconds, full=full)
        self._failures.labels(family).inc()

    def tidying_failed(self, family: Family) -> None:
        """Count chains that could not be deleted."""
        self._cleanup_failures.labels(family).inc()

    def conntrack_done(self, family: Family, seconds: float, deleted: int) -> None:
        """Record a removal of stale conntrack entries."""
        self._conntrack_took.labels(family).observe(seconds)
        self._conntrack_deleted.labels(family).inc(deleted)

    def answered(self, path: str, code: int) -> None:
        """Count an answer of the proxy health server; `path` is `healthz` or `livez`."""
        {"healthz": self._healthz, "livez": self._livez}[path].labels(str(code)).inc()

    def pinged(self) -> None:
        """Count an answer of the metrics server's own /healthz."""
        self._pings.labels("ping", "healthz", "success").inc()

    def requested(self, *, code: str, method: str, host: str, seconds: float) -> None:
        """Count a request to the API server, and the seconds until the head of its answer.

        `code` is `<error>` where there was no answer, as in the original.
        """
        self._rest_requests.labels(code, method, host).inc()
        self._rest_took.labels(method, host).observe(seconds)

    def watch_restarted(self, resource: str) -> None:
        """Count a watch of a resource that ended and starts again."""
        self._watch_restarts.labels(resource).inc()

    def repaired(self, family: Family) -> None:
        """Count a repaired change of our table by another program."""
        self._repairs.labels(family).inc()

    def local_listeners(self, family: Family, listeners: int, failed: int) -> None:
        """Note how many NodePorts listen on a loopback address, and how many tries failed."""
        self._local_listeners.labels(family).set(listeners)
        self._local_failures.labels(family).inc(failed)

    def _sync_took(self, family: Family, seconds: float, *, full: bool) -> None:
        self._took.labels(family).observe(seconds)
        (self._full_took if full else self._partial_took).labels(family).observe(seconds)

    def _make_sync(self) -> None:
        rules = "sync_proxy_rules"
        self._took = self._histogram(
            f"{rules}_duration_seconds", "Duration of every sync, failed ones too."
        )
        self._full_took = self._histogram(
            "sync_full_proxy_rules_duration_seconds", "Duration of full syncs."
        )
        self._partial_took = self._histogram(
            "sync_partial_proxy_rules_duration_seconds", "Duration of partial syncs."
        )
        self._last_sync = self._gauge(
            f"{rules}_last_timestamp_seconds", "Time of the last successful sync."
        )
        self._last_queued = self._gauge(
            f"{rules}_last_queued_timestamp_seconds", "Time of the last request for a sync."
        )
        self._service_changes = Counter(
            f"kubeproxy_{rules}_service_changes",
            "Changes of Services, counted by each family.",
            registry=self.registry,
        )
        self._endpoint_changes = Counter(
            f"kubeproxy_{rules}_endpoint_changes",
            "Changes of EndpointSlices of a family served.",
            registry=self.registry,
        )
        pending = self._pending.values()
        services, slices = (
            Gauge(
                f"kubeproxy_{rules}_{what}_changes_pending",
                f"{kind} with changes not yet applied.",
                registry=self.registry,
            )
            for what, kind in (("service", "Services"), ("endpoint", "EndpointSlices"))
        )
        services.set_function(lambda: sum(each.counts()[0] for each in pending))
        slices.set_function(lambda: sum(each.counts()[1] for each in pending))
        self._programming = self._histogram(
            "network_programming_duration_seconds",
            "Time from a change of endpoints in the cluster to the table.",
            LATENCY,
        )
        self._no_local = self._gauge(
            f"{rules}_no_local_endpoints_total",
            "Service ports with a traffic policy Local that have endpoints, but none on this node.",
            ("traffic_policy", *_FAMILY),
        )
        self._failures = self._counter(f"{rules}_nftables_sync_failures", "Syncs that failed.")
        self._cleanup_failures = self._counter(
            f"{rules}_nftables_cleanup_failures", "Failed removals of unused chains."
        )
        for family in self._families:
            for each in (
                self._failures,
                self._cleanup_failures,
            ):  # no times: alerts would see a sync in 1970
                each.labels(family)
            for policy in ("internal", "external"):
                self._no_local.labels(policy, family)

    def _make_rest(self) -> None:
        self._healthz = self._counter("proxy_healthz", "Answers of /healthz.", ("code",))
        self._livez = self._counter("proxy_livez", "Answers of /livez.", ("code",))
        self._conntrack_took = self._histogram(
            "conntrack_reconciler_sync_duration_seconds", "Duration of removing stale entries."
        )
        self._conntrack_deleted = self._counter(
            "conntrack_reconciler_deleted_entries", "Stale conntrack entries removed."
        )
        self._rest_requests = Counter(
            "rest_client_requests",
            "Requests to the API server.",
            ("code", "method", "host"),
            registry=self.registry,
        )
        self._rest_took = Histogram(
            "rest_client_request_duration_seconds",
            "Time from a request to the API server to the head of its answer.",
            ("verb", "host"),
            buckets=REQUESTS,
            registry=self.registry,
        )
        check = Gauge(
            "kubernetes_healthcheck",
            "Whether a health check passes.",
            ("name", "type"),
            registry=self.slis,
        )
        check.labels("ping", "healthz").set(1)
        self._pings = Counter(
            "kubernetes_healthchecks",
            "Health checks made.",
            ("name", "type", "status"),
            registry=self.slis,
        )

    def _make_own(self) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = _FAMILY) -> Counter:
            return Counter(f"nftproxy_{name}", text, labels, registry=self.registry)

        self._stages = Histogram(
            "nftproxy_sync_stage_duration_seconds",
            "Duration of the parts of a sync.",
            ("ip_family", "stage"),
            buckets=EXPONENTIAL,
            registry=self.registry,
        )
        self._written = counter(
            "elements_written", "Elements of maps and sets added, rewritten or deleted."
        )
        self._transactions = counter("transactions", "Transactions committed.")
        self._read_backs = counter(
            "read_backs",
            "How often the table was read back, at the start or because another program changed "
            "it.",
        )
        self._repairs = counter("repairs", "Repaired changes of the table by other programs.")
        self._watch_restarts = counter(
            "watch_restarts", "Watches that ended and started again.", ("resource",)
        )
        self._refused = Gauge(
            "nftproxy_services_refused",
            "Services that keep an old state, because the kernel refused the new one.",
            _FAMILY,
            registry=self.registry,
        )
        threads = Gauge("nftproxy_threads", "Threads of the process.", registry=self.registry)
        threads.set_function(threading.active_count)
        for family in self._families:
            for each in (
                self._written,
                self._transactions,
                self._read_backs,
                self._repairs,
                self._refused,
            ):
                each.labels(family)

    def _make_localhost(self) -> None:
        base = "nftables_localhost_nodeport"
        self._local_listeners = self._gauge(
            f"{base}_listeners", "NodePorts that listen on the loopback address."
        )
        self._local_failures = self._counter(
            f"{base}_listener_creation_failures",
            "Failed tries to listen on the loopback address for a NodePort.",
        )
        for family in self._families:
            self.local_listeners(family, 0, 0)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = EXPONENTIAL
    ) -> Histogram:
        return Histogram(
            f"kubeproxy_{name}", text, _FAMILY, buckets=buckets, registry=self.registry
        )

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = _FAMILY) -> Gauge:
        return Gauge(f"kubeproxy_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = _FAMILY) -> Counter:
        return Counter(f"kubeproxy_{name}", text, labels, registry=self.registry)


class _Pending:
    """Changes of one family that are not applied yet: services, and the slices of each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._services: set[ObjectName] = set()
        self._slices: dict[ObjectName, set[str]] = {}

    def service(self, name: ObjectName) -> None:
        with self._lock:
            self._services.add(name)

    def slice(self, piece: EndpointSlice) -> None:
        if piece.service:
            with self._lock:
                self._slices.setdefault(piece.service, set()).add(piece.metadata.name)

    def done(self, looked: Iterable[ObjectName]) -> None:
        with self._lock:
            self._services.difference_update(looked)
            for name in looked if self._slices else ():
                self._slices.pop(name, None)

    def counts(self) -> tuple[int, int]:
        with self._lock:
            return len(self._services), sum(map(len, self._slices.values()))


def _describe(registry: CollectorRegistry, gates: Mapping[str, bool]) -> None:
    """Describe the build and the feature gates (contract 7.4.17)."""
    version = metadata.version("nftproxy")
    major, minor, patch = KUBERNETES
    build = {
        "major": str(major),
        "minor": str(minor),
        "git_version": f"v{major}.{minor}.{patch}+nftproxy.{version}",
        "git_commit": "",
        "git_tree_state": "",
        "build_date": "",
        "go_version": "",
        "compiler": platform.python_implementation(),
        "platform": f"linux/{_MACHINES.get(platform.machine(), platform.machine())}",
    }
    name = "kubernetes_build_info"
    Gauge(
        name, "The release that this proxy replaces, and its own.", tuple(build), registry=registry
    ).labels(**build).set(1)
    own = Gauge(
        "nftproxy_build_info",
        "The version of this proxy.",
        ("version", "python"),
        registry=registry,
    )
    own.labels(version, platform.python_version()).set(1)
    enabled = Gauge(
        "kubernetes_feature_enabled",
        "Feature gates: 1 is on.",
        ("name", "stage"),
        registry=registry,
    )
    for name, gate in featuregates.GATES.items():
        stage = "" if gate.stage == "stable" else gate.stage.upper()
        enabled.labels(name, stage).set(featuregates.enabled(gates, name))
