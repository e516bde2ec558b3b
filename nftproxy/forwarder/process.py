"""The proxy's side of its forwarder: the child's start, its orders, and its start after a failure.

`LocalNodePorts` decides what has to be forwarded; it is pure. `LocalForwarder` keeps a child that
does it.
"""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec
from loguru import logger

from nftproxy.address import Family
from nftproxy.forwarder.messages import (
    Backends,
    Bulletin,
    Instruction,
    LocalFrontend,
    encode,
    to_bulletin,
)
from nftproxy.routes import Route

COMMAND = (sys.executable, "-P", "-m", "nftproxy.forwarder")
AGAIN = 1.0  # seconds before a forwarder that ended is started again
PATIENCE = 2.0  # seconds for it to end by itself


class LocalNodePorts:
    """What the routes in the table mean for the NodePorts of one family on its loopback address."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._known: set[int] = set()
        self._unseen: set[int] = set()  # since the table was read back

    def changed(
        self,
        routes: Mapping[int, Route | None],
        *,
        read_back: bool,
        whole: bool,
        kept: Collection[int] = (),
    ) -> dict[LocalFrontend, Backends | None]:
        """Return what a sync changes.

        `routes` are the TCP NodePorts that it changed, and `kept` those that stay as they were.
        After a sync with `read_back`, all others come again; those that did not by the end of a
        sync that postponed nothing, which is `whole`, are gone.
        """
        found: dict[LocalFrontend, Backends | None] = {}
        if read_back:
            self._unseen = self._known.difference(kept)
        for port, route in routes.items():
            self._unseen.discard(port)
            backends = backends_of(route) if route else None
            if backends:
                self._known.add(port)
            else:
                self._known.discard(port)
            found[LocalFrontend(self._family, port)] = backends
        if whole and self._unseen:
            found |= {LocalFrontend(self._family, port): None for port in self._unseen}
            self._known -= self._unseen
            self._unseen = set()
        return found


def backends_of(route: Route) -> Backends | None:
    """Return the endpoints of a NodePort's local clients; None if connections are refused.

    The list of the external policy: with Local, that of this node's endpoints alone, although the
    client is this node (contract 2.10.4).
    """
    endpoints = route.local if route.policy.uses_local else route.cluster
    if not endpoints:
        return None
    places = tuple((endpoint.address, endpoint.port) for endpoint in endpoints)
    return Backends(route.name, places, route.affinity.timeout if route.affinity else None)


class LocalForwarder:
    """A forwarder and its NodePorts; belongs to the event loop's thread.

    `count` gets the listeners of a family, and how many more could not be opened.
    """

    def __init__(
        self,
        families: Iterable[Family],
        count: Callable[[Family, int, int], None],
        command: Iterable[str] = COMMAND,
    ) -> None:
        self._families = tuple(families)
        self._count = count
        self._command = tuple(command)
        self._wanted: dict[LocalFrontend, Backends] = {}
        self._changed: set[LocalFrontend] = set()
        self._due = asyncio.Event()
        self._failures: Counter[Family] = Counter()

    def put(self, changed: Mapping[LocalFrontend, Backends | None]) -> None:
        """Forward to other endpoints from now on; None ends it."""
        for frontend, backends in changed.items():
            if backends is None:
                self._wanted.pop(frontend, None)
            else:
                self._wanted[frontend] = backends
        if changed:
            self._changed |= changed.keys()
            self._due.set()

    async def run(self) -> None:
        """Keep a forwarder until cancelled; it ends then, and with it all its connections."""
        while True:
            try:
                await self._serve()
            except (OSError, ValueError, msgspec.DecodeError) as error:  # or what cannot be read
                logger.error("the forwarder of NodePorts on localhost fails: {}", error)
            self._forget()
            await asyncio.sleep(AGAIN)

    async def _serve(self) -> None:
        """Run one child until it ends."""
        child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert child.stdin  # noqa: S101 - asked for
        assert child.stdout  # noqa: S101 - asked for
        self._changed = set(self._wanted)  # a new forwarder knows nothing
        self._due.set()
        orders = asyncio.create_task(self._send(child.stdin))
        try:
            while line := await child.stdout.readline():
                self._hear(to_bulletin(line))
            code = await child.wait()
            logger.error(
                "the forwarder of NodePorts on localhost ended with code {}; its connections are "
                "lost. Starting another one",
                code,
            )
        finally:
            orders.cancel()
            child.stdin.close()
            await _end(child)

    async def _send(self, orders: asyncio.StreamWriter) -> None:
        """Send what changed, everything since the last time together."""
        with contextlib.suppress(ConnectionError):  # the end is noticed elsewhere
            while True:
                await self._due.wait()
                self._due.clear()
                changed, self._changed = self._changed, set()
                orders.write(
                    encode(Instruction([(each, self._wanted.get(each)) for each in changed]))
                )
                await orders.drain()

    def _hear(self, bulletin: Bulletin) -> None:
        if bulletin.warning:
            logger.warning("{}", bulletin.warning)
        elif bulletin.info:
            logger.info("{}", bulletin.info)
        else:
            for family in self._families:
                failures = bulletin.failures.get(family, 0)
                more, self._failures[family] = failures - self._failures[family], failures
                self._count(family, bulletin.listeners.get(family, 0), more)

    def _forget(self) -> None:
        """Note that no listener is open, and that failures are counted from zero again."""
        self._failures.clear()
        for family in self._families:
            self._count(family, 0, 0)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Wait for a child whose input has ended; kill one that does not end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await child.wait()
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
