"""Figures read from the table at each scrape.

Connections by frontend and endpoint, and elements by map.

A netlink socket of its own reads the table once per scrape, so that scrapes and syncs never wait
for each other; about 7 us per element. When the table cannot be read, the previous figures are
shown again and a counter says so.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nftproxy.address import Family
from nftproxy.errors import KernelError, MissingError
from nftproxy.kernel.reader import Counted, Reader
from nftproxy.monitoring.connections import STEPS, Figure, Ledger
from nftproxy.monitoring.refusals import Refusals, rule_counters
from nftproxy.table import schema
from nftproxy.table.schema import PROTOCOLS, Per, Reason

LIMIT = 10_000  # series of connections
_LABELS = ("ip_family", "namespace", "service", "port")
_PER_SERVICE = (Per.SERVICE_PORT, Per.ENDPOINT_PORT, Per.GROUP)
_HELP = {
    Figure.CONNECTIONS: "New connections (TCP, SCTP) and flows (UDP) to a frontend that were sent "
    "to an endpoint.",
    Figure.BY_AFFINITY: "Of these, those that session affinity sent to the client's previous "
    "endpoint.",
    Figure.REFUSED: "Packets to a frontend that were rejected or dropped because it has no "
    "endpoint for them; each try is one.",
    Figure.ENDPOINT: "New connections and flows for which an endpoint was picked; for all "
    "frontends of a service port together, "
    "without those by session affinity.",
}


class TableFigures(Collector):
    """A collector for `Metrics.registry`.

    Made in the table's network namespace, with the current counters as its start.
    """

    def __init__(
        self, families: Iterable[Family], *, endpoints: bool = False, limit: int = LIMIT
    ) -> None:
        self._reader = Reader()
        self._families = tuple(families)
        self._lock = threading.Lock()
        self._ledger = Ledger(limit)
        self._sizes: Counter[str] = Counter()
        self._failures = 0
        self._maps = [
            name
            for family in self._families
            for name in (*_step_maps(family), *(_slot_maps(family) if endpoints else ()))
        ]
        self._ledger.open(self._read())
        self._refusals = Refusals(rule_counters(self._reader, self._families))

    def close(self) -> None:
        """Close the socket."""
        self._reader.close()

    def describe(self) -> list[Metric]:
        """Name the metrics without reading anything."""
        return [*self._figures(), self._refused(), *self._gauges()]

    def collect(self) -> Iterator[Metric]:
        """Read the table and yield the figures."""
        with self._lock:
            try:
                if self._reader.table_exists():
                    self._ledger.enter(self._read())
                    self._refusals.enter(rule_counters(self._reader, self._families))
                    self._sizes = self._count()
                else:
                    self._ledger.lost()
            except KernelError:
                self._failures += 1
            yield from self._figures()
            yield self._refused()
            yield from self._gauges()

    def _read(self) -> Iterator[tuple[str, Iterator[Counted]]]:
        return ((name, self._elements(name)) for name in self._maps)

    def _elements(self, name: str) -> Iterator[Counted]:
        with suppress(MissingError):  # a table that is just being made
            yield from self._reader.counted(name)

    def _count(self) -> Counter[str]:
        """Count the elements of all maps and sets.

        Those of single ClientIP services count together.
        """
        sizes: Counter[str] = Counter()
        for name in self._reader.sets():
            place = schema.parse(name)
            together = (
                place
                and place.declaration.per in _PER_SERVICE
                and place.declaration.name(place.family)
            )
            try:
                sizes[together or name] += self._reader.count(name)
            except MissingError:
                continue
        return sizes

    def _figures(self) -> list[Metric]:
        families = {
            figure: CounterMetricFamily(
                f"nftproxy_{figure.value}",
                _HELP[figure],
                labels=(*_LABELS, "endpoint" if figure is Figure.ENDPOINT else "frontend"),
            )
            for figure in Figure
        }
        for (figure, subject), value in self._ledger.figures.items():
            families[figure].add_metric(subject.labels(), value)
        return list(families.values())

    def _refused(self) -> Metric:
        refused = CounterMetricFamily(
            "nftproxy_refused",
            "Packets of new connections that were rejected or dropped, by reason; each try is one.",
            labels=("ip_family", "reason"),
        )
        totals = self._refusals.totals + self._ledger.refused
        for family in self._families:
            for reason in Reason:
                refused.add_metric((str(family), str(reason)), totals[family, reason])
        return refused

    def _gauges(self) -> list[Metric]:
        sizes = GaugeMetricFamily(
            "nftproxy_map_elements", "Elements of a map or set.", labels=("map",)
        )
        for name, size in sorted(self._sizes.items()):
            sizes.add_metric((name,), size)
        left_out = GaugeMetricFamily(
            "nftproxy_series_left_out",
            "Series of connections beyond the limit.",
            self._ledger.left_out,
        )
        failures = CounterMetricFamily(
            "nftproxy_table_read_failures", "Scrapes that could not read the table.", self._failures
        )
        return [sizes, left_out, failures]


def _step_maps(family: Family) -> list[str]:
    return [step.name(family, node_port=node_port) for step in STEPS for node_port in (False, True)]


def _slot_maps(family: Family) -> list[str]:
    maps = [
        schema.maps(family, proto, node_port) for node_port in (False, True) for proto in PROTOCOLS
    ]
    return [each.endpoints for each in maps] + [each.local_endpoints for each in maps]
