"""Figures that are read from the table when somebody scrapes: connections by frontend and endpoint, and elements by map.

Read once per scrape, by a netlink socket of its own, so that a scrape never waits for a sync nor a sync for a scrape; about 7 us per
element. When the table cannot be read, the figures of before are shown again and a counter tells.
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
from nftproxy.monitoring.connections import LISTS, PREFIXES, STEPS, Figure, Ledger
from nftproxy.table.program import PROTOCOLS

LIMIT = 10_000  # series of connections
_LABELS = ("ip_family", "namespace", "service", "port")
_PER_SERVICE = ("cluster_members", "local_members", "affinity", "local_affinity")
_HELP = {
    Figure.CONNECTIONS: "New connections (TCP, SCTP) and flows (UDP) to a frontend that were sent to an endpoint.",
    Figure.BY_AFFINITY: "Of these, those that session affinity sent to the endpoint the client had before.",
    Figure.REFUSED: "Packets to a frontend that were rejected or dropped because it has no endpoint for them; each try is one.",
    Figure.ENDPOINT: "New connections and flows for which an endpoint was picked; all of a service port's frontends together, "
    "without those by session affinity.",
}


class TableFigures(Collector):
    """A collector for `Metrics.registry`; made in the table's network namespace, where it takes the counters' state as beginning."""

    def __init__(self, families: Iterable[Family], *, endpoints: bool = False, limit: int = LIMIT) -> None:
        self._reader = Reader()
        self._lock = threading.Lock()
        self._ledger = Ledger(limit)
        self._sizes: Counter[str] = Counter()
        self._failures = 0
        self._maps = [name for family in families for name in (*_step_maps(family), *(_slot_maps(family) if endpoints else ()))]
        self._ledger.open(self._read())

    def close(self) -> None:
        """Give the socket back."""
        self._reader.close()

    def describe(self) -> list[Metric]:
        """Name the metrics without reading anything."""
        return [*self._figures(), *self._gauges()]

    def collect(self) -> Iterator[Metric]:
        """Read the table and yield the figures."""
        with self._lock:
            try:
                if self._reader.table_exists():
                    self._ledger.enter(self._read())
                    self._sizes = self._count()
                else:
                    self._ledger.lost()
            except KernelError:
                self._failures += 1
            yield from self._figures()
            yield from self._gauges()

    def _read(self) -> Iterator[tuple[str, Iterator[Counted]]]:
        return ((name, self._elements(name)) for name in self._maps)

    def _elements(self, name: str) -> Iterator[Counted]:
        with suppress(MissingError):  # a table that is just being made
            yield from self._reader.counted(name)

    def _count(self) -> Counter[str]:
        """Count the elements of all maps and sets; those that each ClientIP service has of its own count together."""
        sizes: Counter[str] = Counter()
        for name in self._reader.sets():
            base = name.partition("-")[0]
            try:
                sizes[base if base[:-1] in _PER_SERVICE else name] += self._reader.count(name)
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

    def _gauges(self) -> list[Metric]:
        sizes = GaugeMetricFamily("nftproxy_map_elements", "Elements of a map or set.", labels=("map",))
        for name, size in sorted(self._sizes.items()):
            sizes.add_metric((name,), size)
        left_out = GaugeMetricFamily("nftproxy_series_left_out", "Series of connections beyond the limit.", self._ledger.left_out)
        failures = CounterMetricFamily("nftproxy_table_read_failures", "Scrapes that could not read the table.", self._failures)
        return [sizes, left_out, failures]


def _step_maps(family: Family) -> list[str]:
    return [f"{prefix}{step}{family.digit}" for step in STEPS for prefix in PREFIXES]


def _slot_maps(family: Family) -> list[str]:
    return [f"{prefix}{slots}{family.digit}-{proto}" for slots in LISTS for prefix in PREFIXES for proto in PROTOCOLS]
