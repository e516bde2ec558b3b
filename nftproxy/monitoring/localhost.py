"""Packets to NodePorts that loopback addresses refused, by protocol, read at each scrape.

The counters are those of the rules; a netlink socket of its own reads them.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from nftproxy.address import Family
from nftproxy.errors import KernelError, MissingError
from nftproxy.kernel.reader import Reader
from nftproxy.monitoring.refusals import Refusals
from nftproxy.table import schema
from nftproxy.table.schema import PROTOCOLS

_NAME = "kubeproxy_nftables_localhost_nodeport_rejected_packets"


class LocalhostRefusals(Collector):
    """A collector for `Metrics.registry`, made in the table's network namespace.

    When the table cannot be read, it shows the previous figures.
    """

    def __init__(self, families: Iterable[Family]) -> None:
        self._reader = Reader()
        self._families = tuple(families)
        self._lock = threading.Lock()
        self._refusals = Refusals(self._read())

    def close(self) -> None:
        """Close the socket."""
        self._reader.close()

    def describe(self) -> list[Metric]:
        """Name the metric without reading anything."""
        return [self._metric()]

    def collect(self) -> Iterator[Metric]:
        """Read the counters and yield the metric."""
        with self._lock:
            with suppress(KernelError):
                self._refusals.enter(self._read())
            yield self._metric()

    def _read(self) -> dict[tuple[Family, str], int]:
        """Read the counters; a chain that does not exist counts nothing."""
        found: dict[tuple[Family, str], int] = {}
        for family in self._families:
            with suppress(MissingError):
                packets = self._reader.rule_counters(schema.refuse_localhost(family))
                found |= {
                    (family, proto): count for proto, count in zip(PROTOCOLS, packets, strict=False)
                }
        return found

    def _metric(self) -> Metric:
        refused = CounterMetricFamily(
            _NAME,
            "Packets to NodePorts on loopback addresses that were rejected: for UDP and SCTP all, "
            "for TCP where these are not forwarded.",
            labels=("ip_family", "protocol"),
        )
        for family in self._families:
            for proto in PROTOCOLS:
                refused.add_metric(
                    (str(family), proto.upper()), self._refusals.totals[family, proto]
                )
        return refused
