"""A forwarder of NodePorts on localhost at work in a network namespace, and endpoints for it."""

import asyncio
import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

from nftproxy.address import Family
from nftproxy.forwarder.bounds import Bounds
from nftproxy.forwarder.messages import Backends, Bulletin, Instruction, LocalFrontend
from nftproxy.forwarder.ports import LocalPorts
from nftproxy.lab import namespace
from nftproxy.lab.namespace import enter
from tests.support.world import SLOW, unique_name

Result = TypeVar("Result")
LOOPBACK = {Family.IPv4: "127.0.0.1", Family.IPv6: "::1"}
PLACE = {Family.IPv4: "192.0.2.10", Family.IPv6: "fd00::10"}
"""Addresses of the namespace, where endpoints listen."""
PATIENCE = 20.0 * SLOW


@contextlib.contextmanager
def machine() -> Iterator[str]:
    """A namespace with loopback and an address of each family."""
    name = f"{unique_name()}.forwarder"
    namespace.create(name)
    try:
        for arguments in (
            ["link", "set", "lo", "up"],
            *(["addr", "add", address, "dev", "lo"] for address in ("192.0.2.10/32", "fd00::10")),
        ):
            subprocess.run(["ip", "-n", name, *arguments], check=True)
        yield name
    finally:
        namespace.delete(name)


class Forwarding:
    """`LocalPorts` in a thread of its own, and what they reported."""

    def __init__(self, netns: str, bounds: Bounds | None = None) -> None:
        self.netns = netns
        self.bulletins: list[Bulletin] = []
        self._bounds = bounds or Bounds()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main)
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        self.ports: LocalPorts

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def call(self, work: Callable[[], Result]) -> Result:
        """Run a function in the forwarder's thread."""

        async def run() -> Result:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE)

    def put(
        self,
        port: int,
        *endpoints: tuple[str, int],
        family: Family = Family.IPv4,
        affinity: int | None = None,
    ) -> None:
        """Forward a NodePort to endpoints; without any, no longer."""
        backends = Backends("default/web", endpoints, affinity) if endpoints else None
        instruction = Instruction([(LocalFrontend(family, port), backends)])
        self.call(lambda: self.ports.obey(instruction))

    def connect(
        self,
        port: int,
        family: Family = Family.IPv4,
        *,
        address: str = "",
        buffer: int | None = None,
    ) -> socket.socket:
        """Connect to a NodePort on localhost, or on another address."""
        with enter(self.netns):
            kind = socket.AF_INET if family is Family.IPv4 else socket.AF_INET6
            client = socket.socket(kind)
        client.settimeout(PATIENCE)
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            client.connect((address or LOOPBACK[family], port))
        except BaseException:
            client.close()
            raise
        return client

    @property
    def connections(self) -> int:
        """How many there are."""
        return self.call(lambda: self.ports.connections)

    def _main(self) -> None:
        # The namespace is the thread's: it has to be entered before the loop makes its sockets
        with enter(self.netns):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self.ports = LocalPorts(self._bounds, self.bulletins.append)
        self._ready.set()
        await self._end.wait()
        self.ports.close()


class EndpointProcess:
    """An endpoint that does to each connection, in a thread of its own, what `serve` does."""

    def __init__(
        self,
        netns: str,
        serve: Callable[[socket.socket], None],
        family: Family = Family.IPv4,
        buffer: int | None = None,
    ) -> None:
        self._serve = serve
        self.accepted = 0
        with enter(netns):
            kind = socket.AF_INET if family is Family.IPv4 else socket.AF_INET6
            self._socket = socket.socket(kind)
        if buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.bind((PLACE[family], 0))
        self._socket.listen(4096)
        self.place: tuple[str, int] = self._socket.getsockname()[:2]
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._socket.close()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            connection.settimeout(PATIENCE)
            thread = threading.Thread(target=self._one, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)


def echo(connection: socket.socket) -> None:
    """Send back what arrives."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def names_itself(name: str) -> Callable[[socket.socket], None]:
    """Send a name and end."""
    return lambda connection: connection.sendall(name.encode())


def everything(client: socket.socket) -> bytes:
    """Receive until the end."""
    pieces = []
    while data := client.recv(1 << 16):
        pieces.append(data)
    return b"".join(pieces)
