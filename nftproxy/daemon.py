"""A node's proxy, from start to stop: the order of its parts, and the reasons for its end.

The source of objects, an API server or manifests, makes two differences here: events need an API
server, and a host without a cluster needs no Node.

The order of work is kube-proxy's (contract 8.1.2), with two exceptions. The servers answer from the
first second on, so that a long first list never looks like a dead process. And the rules of another
mode of kube-proxy are removed only when our own table is in place, so that no Service is without
rules in between (5.12 has this first).
"""

import asyncio
import enum
import functools
import os
import platform
import re
import resource
import signal
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from loguru import logger

from nftproxy import log
from nftproxy.address import Address, Family, parse_address
from nftproxy.aftermath import Aftermath
from nftproxy.configuration import config as configuration
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.configuration.featuregates import enabled
from nftproxy.configuration.settings import (
    NodeSettings,
    node_addresses,
    node_ips,
    node_settings,
)
from nftproxy.errors import AddressError, NftproxyError, UnusableError
from nftproxy.forwarder.process import LocalForwarder
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import Meta, Node
from nftproxy.monitoring.events import (
    HEALTH_SERVER_FAILED,
    METRICS_SERVER_FAILED,
    STARTING,
    EventKind,
    Events,
    Regarding,
)
from nftproxy.monitoring.http.bind import serve
from nftproxy.monitoring.http.pages import About, metrics_server
from nftproxy.monitoring.http.proxyhealth import health_server
from nftproxy.monitoring.localhost import LocalhostRefusals
from nftproxy.monitoring.metrics import Metrics
from nftproxy.monitoring.proxyhealth import ProxyHealth
from nftproxy.monitoring.refusallog import RefusalLog
from nftproxy.monitoring.tablefigures import LIMIT, TableFigures
from nftproxy.node import instance, interfaces, sysctl
from nftproxy.node.conntrack import Conntrack
from nftproxy.node.host import OLDEST_KERNEL
from nftproxy.sources.delivery import facts
from nftproxy.sources.folders import Folders
from nftproxy.sources.source import Source, Sourcing
from nftproxy.store import Store
from nftproxy.sync.proxy import Proxy
from nftproxy.sync.table import Table

NODE_PATIENCE = 30.0  # seconds for the Node to exist and to have an address (contract 1.2.2)
POD_CIDR_PATIENCE = 300.0  # seconds for its pod CIDRs, where they are needed (1.2.3)
EVENTS_PATIENCE = 3.0  # seconds to write what is still to be written at the end
SKIP_KERNEL_CHECK = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK"  # contract 5.1.1


class Figures(enum.Enum):
    """The objects whose connections are counted at each scrape."""

    OFF = "off"
    FRONTENDS = "frontends"
    ENDPOINTS = "endpoints"


@dataclass(frozen=True, slots=True)
class Launch:
    """The input of a process.

    Its settings, the file they came from, its flags as text, and the machine it runs on.
    """

    config: KubeProxyConfiguration
    node_name: str
    hostname: str
    supported: frozenset[Family]
    config_file: Path | None = None
    flags: Mapping[str, str] | None = None
    init_only: bool = False
    limits_required: bool = (
        True  # whether the process ends if the conntrack settings cannot be made
    )
    figures: Figures = Figures.FRONTENDS
    series: int = LIMIT
    log_refusals: bool = False


class Daemon:
    """One process that serves one node; belongs to the event loop's thread."""

    def __init__(
        self, launch: Launch, sourcing: Sourcing, metrics: Metrics, events: Events | None = None
    ) -> None:
        """Prepare; `events` is None without an API server to write them to."""
        self._launch = launch
        self._config = launch.config
        self._events = events
        self._metrics = metrics
        self._health = ProxyHealth(launch.config.nftables.sync_period.seconds)
        self._store = Store(sorted(launch.supported), metrics, note=_warn)
        self._sourcing = sourcing
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._proxy: Proxy | None = None
        self._pod_cidrs: tuple[str, ...] | None = None
        self._addresses: dict[Family, Address] | None = (
            None  # of the Node, as last seen; None before the start
        )
        self._node_ips: tuple[Address, ...] | None = None  # of the Node at the start, if needed

    async def run(self) -> None:
        """Serve until a signal.

        NftproxyError if the process has to end, mostly to be started again.
        """
        _allow_open_files()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._finish)
        source = self._sourcing(
            self._store,
            changed=lambda: self._call(self._changed),
            node_changed=lambda node: self._call(lambda: self._node_changed(node)),
        )
        claimed = ExitStack()
        try:
            if not self._launch.init_only:
                # Before the servers, whose addresses another instance would use, too
                claimed.enter_context(instance.claim())
                self._serve(source)
            self._spawn(source.follow())
            self._spawn(self._work(source))
            await self._end
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            source.stop()
            claimed.close()
            if self._events:
                self._events.close(EVENTS_PATIENCE)
        logger.info(
            "done" if self._launch.init_only else "stopped; the table stays, so traffic goes on"
        )

    async def _work(self, source: Source) -> None:
        """Prepare the machine, then keep the table in step."""
        settings = await self._prepare(source)
        if self._launch.init_only:
            self._finish()
            return
        self._record(STARTING, Regarding.node(self._launch.node_name), "")
        with ExitStack() as stack:
            kernel = stack.enter_context(Kernel())
            kernel.require()
            await self._count_connections(settings, stack)
            if settings.serves_localhost:
                refused = stack.enter_context(closing(LocalhostRefusals(settings.families)))
                self._metrics.registry.register(refused)
            settings = replace(settings, log_refusals=self._log_refusals())
            conntrack = stack.enter_context(closing(Conntrack()))
            own = await asyncio.to_thread(interfaces.addresses)
            judged = bool(self._config.healthz_bind_address)
            forwarder = self._forward(settings)
            after = Aftermath(
                settings,
                own,
                kernel,
                conntrack,
                health=self._health,
                metrics=self._metrics,
                record=self._record,
                judged=judged,
                forwarder=forwarder,
            )
            stack.enter_context(closing(after))
            self._proxy = after.proxy = Proxy(Table(settings, self._store, kernel), after)
            logger.info("node {}: serving {}", settings.node_name, " and ".join(settings.families))
            self._proxy.changed()
            await self._proxy.run()

    async def _count_connections(self, settings: NodeSettings, stack: ExitStack) -> None:
        """Let scrapes read the counters of the table, unless switched off."""
        figures = self._launch.figures
        if figures is not Figures.OFF:
            # In a thread: it reads all frontends once, to begin with what is there.
            make = functools.partial(
                TableFigures,
                settings.families,
                endpoints=figures is Figures.ENDPOINTS,
                limit=self._launch.series,
            )
            collector = stack.enter_context(closing(await asyncio.to_thread(make)))
            self._metrics.registry.register(collector)

    def _forward(self, settings: NodeSettings) -> LocalForwarder | None:
        """Start the forwarder of NodePorts on loopback addresses if it is asked for."""
        if not settings.forwarded:
            return None
        forwarder = LocalForwarder(sorted(settings.forwarded), self._metrics.local_listeners)
        self._spawn(forwarder.run())
        return forwarder

    def _log_refusals(self) -> bool:
        """Begin to log refusals if asked to; return whether the rules have to hand them out."""
        if not self._launch.log_refusals:
            return False
        try:
            log = RefusalLog(self._owner)
        except UnusableError as error:
            logger.error(
                "refusals are not logged: {}; {}. Everything else goes on", error, error.hint
            )
            return False
        self._spawn(log.follow())
        return True

    def _owner(self, cluster_ip: str) -> str:
        return str(self._store.owner(cluster_ip) or "")

    async def _prepare(self, source: Source) -> NodeSettings:
        """Wait for the Node, derive the settings, apply those of the system (contract 1.2, 6.1)."""
        node = await asyncio.to_thread(source.wait_for_node, NODE_PATIENCE, _has_address)
        if source.node_required if node is None else not _has_address(node):
            logger.error("Node {} has no usable address; going on without", self._launch.node_name)
        if self._config.detect_local_mode == "NodeCIDR":
            node = await asyncio.to_thread(
                source.wait_for_node, POD_CIDR_PATIENCE, lambda found: bool(found.spec.pod_cidrs)
            )
            self._pod_cidrs = (node and node.spec.pod_cidrs) or ()
        settings, warnings = node_settings(
            self._config,
            facts(node),
            hostname=self._launch.hostname,
            supported=self._launch.supported,
        )
        for warning in warnings:
            logger.warning("{}", warning)
        self._addresses = node_addresses(self._config.bind_address, facts(node))
        if source.node_required:
            self._node_ips = node_ips(facts(node))
            if latest := self._store.node:  # what changed before is not reported again
                self._node_changed(latest)
        sysctl.set_oom_score(self._config.oom_score_adj)
        self._set_limits()
        require_kernel(platform.release(), os.environ)
        return settings

    def _set_limits(self) -> None:
        """Make the settings of conntrack.

        A failure ends the process if its limits were ordered, else it is a warning.
        """
        try:
            sysctl.apply(self._config.conntrack)
        except UnusableError as error:
            if self._launch.limits_required:
                raise
            logger.warning("{}; going on with the present limits. It {}", error, error.hint)

    def _serve(self, source: Source) -> None:
        """Start the servers, and the watch on the configuration file."""
        config, regarding, hard = (
            self._config,
            Regarding.node(self._launch.node_name),
            self._config.bind_address_hard_fail,
        )
        stand_in = (
            None if source.node_required else Node(metadata=Meta(name=self._launch.node_name))
        )
        if config.healthz_bind_address:
            health = health_server(
                self._health, lambda: self._store.node or stand_in, self._metrics
            )
            self._spawn(
                serve(
                    health,
                    "the health server",
                    config.healthz_bind_address,
                    hard_fail=hard,
                    failed=lambda reason: self._record(HEALTH_SERVER_FAILED, regarding, reason),
                )
            )
        self._spawn(
            serve(
                metrics_server(self._metrics, self._about()),
                "the metrics server",
                config.metrics_bind_address,
                hard_fail=hard,
                failed=lambda reason: self._record(METRICS_SERVER_FAILED, regarding, reason),
            )
        )
        if self._launch.config_file:
            self._spawn(
                self._watch_configuration(
                    self._launch.config_file, self._launch.config_file.read_bytes()
                )
            )

    def _about(self) -> About:
        config = self._config
        return About(
            mode="nftables",
            version=metadata.version("nftproxy"),
            configuration=lambda: configuration.dump(config),
            flags=self._launch.flags or {},
            set_verbosity=lambda level: log.start(config.logging.format, verbosity=level),
            profiling=config.enable_profiling,
            flagz=enabled(config.feature_gates, "ComponentFlagz"),
            statusz=enabled(config.feature_gates, "ComponentStatusz"),
        )

    async def _watch_configuration(self, path: Path, before: bytes) -> None:
        """End the process when the content of the file changes.

        This includes the swap of a ConfigMap's symlink (contract 8.1.6).
        """
        with Folders({path.parent}) as folders:
            while True:
                with suppress(TimeoutError):
                    await folders.changed()
                with suppress(OSError):  # between two versions there may be no file
                    if path.read_bytes() != before:
                        raise NftproxyError(
                            f"{path} has changed",
                            hint="this process ends, to be started again with it",
                        )

    def _record(self, kind: EventKind, regarding: Regarding, note: str) -> None:
        """Write an event, if there is an API server."""
        if self._events:
            self._events.record(kind, regarding, note)

    def _changed(self) -> None:
        if self._proxy:
            self._proxy.changed()

    def _node_changed(self, node: Node | None) -> None:
        """End the process if its Node no longer is what it started with.

        That is: pod CIDRs that the detector NodeCIDR uses, addresses, and whether there is one
        (contract 1.4.2 to 1.4.4).
        """
        if node is None:
            self._end_without_node()
            return
        self._follow_addresses(node)
        if self._pod_cidrs is not None and (node.spec.pod_cidrs or ()) != self._pod_cidrs:
            hint = "this process ends, to be started again with the new ones"
            self._finish(
                NftproxyError(f"the pod CIDRs of Node {node.metadata.name} have changed", hint=hint)
            )

    def _end_without_node(self) -> None:
        if self._node_ips is not None:
            hint = "this process ends, to be started again and wait for a Node of that name"
            self._finish(NftproxyError(f"Node {self._launch.node_name} was deleted", hint=hint))

    def _follow_addresses(self, node: Node) -> None:
        """End the process if its Node's addresses change; a host without a cluster logs it.

        A Node that has lost all addresses is no reason: the next process could only wait for one
        (contract 1.4.3).
        """
        if self._node_ips is not None:
            now = node_ips(facts(node))
            if now and now != self._node_ips:
                before = " and ".join(each.text for each in self._node_ips) or "none"
                self._finish(
                    NftproxyError(
                        f"the addresses of Node {node.metadata.name} have changed from {before} to "
                        f"{' and '.join(each.text for each in now)}",
                        hint="this process ends, to be started again with the new ones",
                    )
                )
        else:
            self._log_addresses(node)

    def _log_addresses(self, node: Node) -> None:
        """Log changed addresses of the Node: those of the start stay in use."""
        if self._addresses is None:
            return
        before, self._addresses = (
            self._addresses,
            node_addresses(self._config.bind_address, facts(node)),
        )
        for family in Family:
            old, new = before.get(family), self._addresses.get(family)
            if old != new:
                logger.warning(
                    "Node {}: its {} address changed from {} to {}; NodePorts on `primary` and "
                    "source ranges go on with what it "
                    "was at the start. Restart nftproxy to use the new one.",
                    node.metadata.name,
                    family,
                    old.text if old else "none",
                    new.text if new else "none",
                )

    def _call(self, work: "Any") -> None:
        """Run a function in the event loop's thread, unless the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task; its failure ends the process."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._finish(error)

    def _finish(self, error: BaseException | None = None) -> None:
        if self._end.done():
            return
        if error:
            self._end.set_exception(error)
        else:
            self._end.set_result(None)


def _warn(note: str) -> None:
    logger.warning("{}", note)


def _allow_open_files() -> None:
    """Allow as many open files as the machine does.

    Each health check node port takes a socket for each family and address.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_kernel(release: str, environment: Mapping[str, str]) -> None:
    """Raise UnusableError for a kernel before 5.13 without the override (contract 5.1.1)."""
    if environment.get(SKIP_KERNEL_CHECK):
        return
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < OLDEST_KERNEL:
        raise UnusableError(
            f"kernel {release} is older than 5.13",
            hint=f"upgrade it, or set {SKIP_KERNEL_CHECK} to try anyway",
        )


def _has_address(node: Node) -> bool:
    """Whether a Node has a usable address (contract 8.6.2)."""
    for each in node.status.addresses or ():
        if each.type in {"InternalIP", "ExternalIP"}:
            with suppress(AddressError):
                parse_address(each.address)
                return True
    return False
