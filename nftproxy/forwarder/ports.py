"""All NodePorts of a forwarder: their listeners, connections and limits.

A NodePort has a listener as long as it has endpoints. A connection keeps its endpoint, whatever
becomes of the Service, as connections do that the kernel translates. At a limit, the connection
that was unused for longest makes room, if it was unused for some seconds, else the new one is
reset: at its own NodePort's limit, one of that NodePort, and at the limit for all of them, one of
the NodePort that has most. So nobody who opens connections to one NodePort keeps others out of
another.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

from nftproxy.address import Family
from nftproxy.forwarder.bounds import Bounds
from nftproxy.forwarder.choosing import Choosing
from nftproxy.forwarder.connection import Forwarded
from nftproxy.forwarder.direction import PipePool
from nftproxy.forwarder.listener import LocalListener
from nftproxy.forwarder.messages import Backends, Bulletin, Instruction, LocalFrontend

COMPLAINT = 60.0  # seconds between two log lines about a limit


class LocalPorts:
    """The NodePorts of one forwarder; belongs to its event loop."""

    def __init__(self, bounds: Bounds, report: Callable[[Bulletin], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._bounds = bounds
        self._report = report
        self._pool = PipePool()
        self._choosing: dict[LocalFrontend, Choosing] = {}
        self._listeners: dict[LocalFrontend, LocalListener] = {}
        # Each NodePort's connections, the one that was unused for longest first
        self._connections: dict[LocalFrontend, dict[Forwarded, None]] = {}
        self._total = 0
        self._failures: Counter[Family] = Counter()
        self._taken: set[LocalFrontend] = set()  # by somebody else, as last seen
        self._retry: asyncio.TimerHandle | None = None
        self._complained = -COMPLAINT

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return self._total

    def obey(self, instruction: Instruction) -> None:
        """Change NodePorts.

        All are closed before any is opened: two Services may have exchanged theirs.
        """
        for frontend, backends in instruction.ports:
            if backends is None or not backends.endpoints:
                self._choosing.pop(frontend, None)
                self._taken.discard(frontend)
                if listener := self._listeners.pop(frontend, None):
                    listener.close()
        for frontend, backends in instruction.ports:
            if backends is not None and backends.endpoints:
                self._put(frontend, backends)
        self._listen()

    def close(self) -> None:
        """Close all listeners and reset all connections."""
        if self._retry:
            self._retry.cancel()
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        for connections in list(self._connections.values()):
            for each in list(connections):
                each.reset()
        self._pool.close()

    def _put(self, frontend: LocalFrontend, backends: Backends) -> None:
        if known := self._choosing.get(frontend):
            known.backends = backends
        else:
            self._choosing[frontend] = Choosing(backends)

    def _listen(self) -> None:
        """Open the listeners that are missing; try again later where a port is taken."""
        if self._retry:
            self._retry.cancel()
            self._retry = None
        for frontend, choosing in self._choosing.items():
            if frontend in self._listeners:
                continue
            try:
                self._listeners[frontend] = LocalListener(frontend, self._accepted)
            except OSError as error:
                self._failures[frontend.family] += 1
                if frontend not in self._taken:
                    self._taken.add(frontend)
                    self._report(
                        Bulletin(
                            warning=f"NodePort {frontend} of {choosing.backends.name} cannot be "
                            f"listened on: {error.strerror}; connections there do not reach the "
                            "Service. Trying again every "
                            f"{self._bounds.retry:g} s; ss -ltnp shows who has the port"
                        )
                    )
            else:
                if frontend in self._taken:
                    self._taken.discard(frontend)
                    self._report(
                        Bulletin(
                            info=f"NodePort {frontend} of {choosing.backends.name} is listened on"
                        )
                    )
        if self._taken:
            self._retry = self._loop.call_later(self._bounds.retry, self._listen)
        self._count()

    def _count(self) -> None:
        listeners = Counter(frontend.family for frontend in self._listeners)
        self._report(Bulletin(listeners=dict(listeners), failures=dict(self._failures)))

    def _accepted(self, frontend: LocalFrontend, client: socket.socket) -> None:
        now = self._loop.time()
        connection = Forwarded(
            client,
            self._pool,
            self._bounds,
            moved=lambda each: self._moved(frontend, each),
            ended=lambda each: self._ended(frontend, each),
        )
        fits = self._make_room(frontend, now)
        self._connections.setdefault(frontend, {})[connection] = None
        self._total += 1
        if fits:
            connection.open(*self._choosing[frontend].endpoint(now))
        else:
            connection.reset()

    def _make_room(self, frontend: LocalFrontend, now: float) -> bool:
        """Return whether there is room for one more, after making some."""
        connections = self._connections.get(frontend, {})
        if len(connections) >= self._bounds.of_port:
            limit, among = self._bounds.of_port, connections
        elif self._total >= self._bounds.connections:
            limit, among = self._bounds.connections, max(self._connections.values(), key=len)
        else:
            return True
        oldest = next(iter(among))
        stale = now - oldest.used >= self._bounds.stale
        if stale:
            oldest.reset()
        if now - self._complained >= COMPLAINT:
            self._complained = now
            self._report(
                Bulletin(
                    warning=f"NodePort {frontend}: the limit of {limit} connections is reached; "
                    "the one that was unused for longest makes room, or the new one is reset"
                )
            )
        return stale

    def _moved(self, frontend: LocalFrontend, connection: Forwarded) -> None:
        connections = self._connections[frontend]
        del connections[connection]
        connections[connection] = None  # the last one now

    def _ended(self, frontend: LocalFrontend, connection: Forwarded) -> None:
        connections = self._connections[frontend]
        del connections[connection]
        self._total -= 1
        if not connections:
            del self._connections[frontend]
