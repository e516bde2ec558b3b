"""The work after each sync.

Figures, health, health check node ports, stale conntrack entries, and once, the removal of what
another mode left. The order is fixed (contract 5.11). A failure here neither undoes a sync nor
stops the next one.
"""

import asyncio
from collections.abc import Callable

from loguru import logger

from nftproxy.address import Address, Family
from nftproxy.annotations import Problems
from nftproxy.configuration.settings import NodeSettings
from nftproxy.errors import BlockedError, NftproxyError
from nftproxy.forwarder.process import LocalForwarder, LocalNodePorts
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import ObjectName
from nftproxy.monitoring.events import (
    HEALTH_CHECK_PORT_FAILED,
    UNUSABLE_ANNOTATION,
    EventKind,
    Regarding,
)
from nftproxy.monitoring.http.servicehealth import HealthCheckPorts
from nftproxy.monitoring.metrics import Metrics
from nftproxy.monitoring.proxyhealth import ProxyHealth
from nftproxy.monitoring.servicehealth import Standing, listen_on
from nftproxy.node import interfaces, takeover
from nftproxy.node.conntrack import Conntrack
from nftproxy.node.udpflows import UdpFlows, nodeport_addresses
from nftproxy.sync.proxy import Observer, Proxy
from nftproxy.sync.report import Report

Record = Callable[[EventKind, Regarding, str], None]


class _Side:
    """The state beside the table of one family."""

    def __init__(
        self,
        family: Family,
        settings: NodeSettings,
        own: list[Address],
        healthy: Callable[[], bool],
        record: Record,
    ) -> None:
        self.standing = Standing(family, settings.node_name)
        self.local_ports = LocalNodePorts(family)
        self.flows = UdpFlows(family, external_ips=settings.allow_external_ips)
        self.notes: list[str] = []
        self.networks = settings.nodeport_addresses[family]
        self.moved = True  # whether the addresses of this machine may differ from those in `flows`

        def failed(service: ObjectName, reason: str) -> None:
            record(HEALTH_CHECK_PORT_FAILED, Regarding.service(service), reason)

        self.ports = HealthCheckPorts(
            family, listen_on(family, self.networks, own), healthy, failed
        )


class Aftermath(Observer):
    """The observer of a `Proxy`; its methods belong to the event loop's thread."""

    def __init__(
        self,
        settings: NodeSettings,
        own: list[Address],
        kernel: Kernel,
        conntrack: Conntrack,
        *,
        health: ProxyHealth,
        metrics: Metrics,
        record: Record,
        judged: bool,
        forwarder: LocalForwarder | None = None,
    ) -> None:
        """Prepare; open nothing before the first sync.

        `own` are the addresses of this machine's interfaces, looked up once at the start (contract
        7.2.2). `judged` is true if there is a health server. Without one, health check node ports
        count the proxy as healthy (7.2.8). `forwarder` is for NodePorts on loopback addresses.
        """
        self.proxy: Proxy  # set by the caller, which makes the proxy
        self._kernel = kernel
        self._conntrack = conntrack
        self._health = health
        self._metrics = metrics
        self._forwarder = forwarder

        def healthy() -> bool:
            return health.healthy or not judged

        self._sides = {
            family: _Side(family, settings, own, healthy, record) for family in settings.families
        }
        self._taking_over: asyncio.Task[None] | None = None
        self._first = set(settings.families)  # families that have had no successful sync yet
        self._record = record
        self._annotations = Problems()  # of both families, which see the same

    def close(self) -> None:
        """Close the health check node ports."""
        for side in self._sides.values():
            side.ports.close()

    def queued(self, family: Family) -> None:
        """Note a request for a sync (contract 1.3.9)."""
        self._health.queued(family)
        self._metrics.queued(family)

    def started(self, family: Family) -> None:
        """Note the start of a family's runner (contract 7.1.3, 7.4.5)."""
        self._health.started(family)
        self._metrics.queued(family)

    def addresses_changed(self) -> None:
        """Let the next clean-up read the addresses of this machine again."""
        for side in self._sides.values():
            side.moved = True

    async def synced(self, report: Report, seconds: float) -> None:
        """Do the work that is due after a successful sync."""
        family = report.family
        side = self._sides[family]
        notes: list[str] = []
        changed = side.standing.look(report.looked_at, notes)
        for note in notes:
            logger.error("{}", note)
        for name, problem in self._annotations.new(report.looked_at):
            self._record(UNUSABLE_ANNOTATION, Regarding.service(name), problem)
        side.flows.saw(report.looked_at, report.refused, everything=report.read_back)
        self._metrics.sync_done(
            report,
            seconds,
            full=report.read_back,
            stages=report.stages,
            without_local_endpoints=side.standing.without_local_endpoints,
        )
        self._health.updated(family)
        if self._forwarder:
            self._forwarder.put(
                side.local_ports.changed(
                    report.node_ports,
                    read_back=report.read_back,
                    whole=not report.postponed,
                    kept=report.kept,
                )
            )
        await side.ports.update(changed)
        if side.moved:
            side.moved = False  # first: they may change again meanwhile
            own = await self.proxy.in_worker(interfaces.addresses)
            side.flows.accept_nodeports_on(nodeport_addresses(family, side.networks, own))
        if side.flows.due:
            await self.proxy.in_worker(lambda: self._reconcile(side))
        if family in self._first:
            self._first.discard(family)
            if not self._first:
                # In a thread: iptables programs need a minute for 10 000 Services, and syncs must
                # go on.
                self._taking_over = asyncio.create_task(asyncio.to_thread(self._take_over))

    def failed(self, family: Family, seconds: float, *, full: bool) -> None:
        """Count a sync that failed."""
        self._metrics.sync_failed(family, seconds, full=full)

    def tidying_failed(self) -> None:
        """Count chains that could not be deleted (contract 7.4.11)."""
        for family in self._sides:
            self._metrics.tidying_failed(family)

    def repaired(self) -> None:
        """Count a repair."""
        for family in self._sides:
            self._metrics.repaired(family)

    def noticed(self, blocked: BlockedError | None) -> None:
        """Report in the answers of the health server why libnftables cannot be called."""
        self._health.limited = f"{blocked}: {blocked.hint}" if blocked else ""

    def _reconcile(self, side: _Side) -> None:
        cleaned = self._conntrack.reconcile(side.flows)
        if cleaned:
            self._metrics.conntrack_done(side.flows.family, cleaned.seconds, cleaned.deleted)

    def _take_over(self) -> None:
        """Remove the rules of another mode, now that our table has all Services (contract 5.12)."""
        try:
            takeover.take_over(self._kernel)
            dropping = takeover.dropping_chains()
        except NftproxyError as error:
            logger.error("the rules of another mode of kube-proxy cannot be read: {}", error)
            return
        for chain in dropping:
            logger.warning(
                "table {}, chain {}, hook {} drops by default: Services fail unless it accepts {}; "
                "add rules for them there",
                chain.table,
                chain.chain,
                chain.hook,
                chain.needed,
            )
