"""Health check node ports.

Where load balancers ask whether this node has endpoints of a Service (contract 7.2).

One listener per Service, family and address, all of a family on one server, so that they share its
limit of connections. Each successful sync opens and closes ports; it also retries a port that was
taken.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from loguru import logger

from nftproxy.address import Family
from nftproxy.model import ObjectName
from nftproxy.monitoring.http.bind import listen_only
from nftproxy.monitoring.http.server import HttpListener, Limits, Server
from nftproxy.monitoring.response import NOT_FOUND, Response
from nftproxy.monitoring.servicehealth import ServiceCheck, answer

Failed = Callable[[ObjectName, str], None]
"""Called with a Service whose port could not be opened, and the reason."""


@dataclass(slots=True)
class _Open:
    service: ObjectName
    check: ServiceCheck
    listeners: list[HttpListener]


class HealthCheckPorts:
    """The health check node ports of one family; belongs to the event loop's thread."""

    def __init__(
        self,
        family: Family,
        addresses: tuple[str, ...],
        healthy: Callable[[], bool],
        failed: Failed,
        limits: Limits | None = None,
    ) -> None:
        self._family = family
        self._addresses = addresses
        self._healthy = healthy
        self._failed = failed
        self._server = Server(self._respond, limits)
        self._lock = asyncio.Lock()
        self._open: dict[ObjectName, _Open] = {}
        self._by_port: dict[int, _Open] = {}
        self._missing: dict[ObjectName, ServiceCheck] = {}  # wanted, but taken

    async def update(self, changed: Mapping[ObjectName, ServiceCheck | None]) -> None:
        """Open, close and count after a successful sync.

        None: the Service no longer has such a port.
        """
        async with self._lock:
            for service, check in changed.items():
                self._missing.pop(service, None)
                known = self._open.get(service)
                if known and (check is None or check.port != known.check.port):
                    self._close(known)
                elif known and check:
                    known.check = check
            # Close all before opening any: Services may have exchanged their ports.
            wanted = {**self._missing, **{s: check for s, check in changed.items() if check}}
            for service, check in wanted.items():
                if service not in self._open and self._addresses:
                    await self._try_open(service, check)

    def close(self) -> None:
        """Close all."""
        for each in list(self._open.values()):
            self._close(each)

    async def _try_open(self, service: ObjectName, check: ServiceCheck) -> None:
        """Open a port on all addresses or on none (contract 7.2.7)."""
        sockets = []
        try:
            for address in self._addresses:
                sockets.append(listen_only(self._family, address, check.port))  # noqa: PERF401 - those before a failure are closed
        except OSError as error:
            for each in sockets:
                each.close()
            reason = (
                f"health check node port {check.port} ({self._family}) cannot be opened: "
                f"{error.strerror or error}"
            )
            if self._missing.get(service) != check:
                logger.warning("Service {}: {}; trying again with each sync", service, reason)
            self._missing[service] = check
            self._failed(service, reason)
            return
        self._missing.pop(service, None)
        opened = _Open(service, check, [await self._server.listen(each) for each in sockets])
        self._open[service] = self._by_port[check.port] = opened

    def _close(self, opened: _Open) -> None:
        for listener in opened.listeners:
            listener.close()
        del self._open[opened.service]
        del self._by_port[opened.check.port]

    async def _respond(self, request: web.BaseRequest) -> Response:
        """Answer any path and method with the state of the port's Service (contract 7.2.3)."""
        place = request.transport.get_extra_info("sockname") if request.transport else None
        opened = self._by_port.get(place[1]) if place else None
        if opened is None:
            return NOT_FOUND
        return answer(opened.service, opened.check.endpoints, healthy=self._healthy())
