"""The process of the userspace mode.

It accepts connections and datagrams for service ports and forwards them to endpoints.

One JSON object per line on its input: {"put": {key: [protocol, [[address, port], ...], seconds]},
"gone": [key, ...]}, where the seconds are those of ClientIP affinity, or 0. It answers with {key:
its listening port} for the keys in "put". It ends with its input.
"""

import asyncio
import contextlib
import json
import resource
import sys
import time
from typing import Any

# Seconds after which a client's datagrams may get another endpoint, the original's default
_UDP_IDLE = 0.25
_READ = 1 << 16
_BACKLOG = 1024

Address = tuple[str, int]


class Balancer:
    """The endpoints of a service port, used in turn.

    With affinity a client keeps its endpoint while that exists.
    """

    def __init__(self) -> None:
        self.endpoints: list[Address] = []
        self.seconds = 0
        self._next = 0
        self._known: dict[str, tuple[Address, float]] = {}

    def pick(self, client: str) -> Address | None:
        """Return the endpoint of a client's next connection; None without endpoints."""
        if not self.endpoints:
            return None
        now = time.monotonic()
        endpoint, until = self._known.get(client, (None, 0.0))
        if endpoint is None or until < now or endpoint not in self.endpoints:
            self._next += 1
            endpoint = self.endpoints[self._next % len(self.endpoints)]
        if self.seconds:
            self._known[client] = endpoint, now + self.seconds
        return endpoint


class TcpService:
    """A listening socket that pairs each connection with one to an endpoint."""

    def __init__(self) -> None:
        self.balancer = Balancer()
        # Python 3.11 keeps no reference to the task of a connection: it may vanish
        self._served: set[asyncio.Task[None] | None] = set()

    async def open(self) -> int:
        """Listen on a port of the kernel's choice and return it."""
        self._server = await asyncio.start_server(self._serve, "0.0.0.0", 0, backlog=_BACKLOG)  # noqa: S104
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Accept nothing more; connections stay."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._served.add(task)
        try:
            await self._forward(reader, writer)
        finally:
            self._served.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        endpoint = self.balancer.pick(writer.get_extra_info("peername")[0])
        try:
            if endpoint is None:
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection(*endpoint)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except OSError:  # no endpoint, or one side was reset: so is the other
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end, and pass the end on."""
    try:
        while chunk := await reader.read(_READ):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


class UdpService(asyncio.DatagramProtocol):
    """A socket whose clients each have a socket to an endpoint for as long as they send."""

    def __init__(self) -> None:
        self.balancer = Balancer()
        self._flows: dict[Address, UdpFlow] = {}

    async def open(self) -> int:
        """Listen on a port of the kernel's choice and return it."""
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, ("0.0.0.0", 0))  # noqa: S104
        port: int = self.transport.get_extra_info("sockname")[1]
        return port

    def close(self) -> None:
        """Stop listening; clients are forgotten."""
        for flow in list(self._flows.values()):
            flow.end()
        self.transport.close()

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Forward what a client sent."""
        flow = self._flows.get(addr)
        if flow is None:
            endpoint = self.balancer.pick(addr[0])
            if endpoint is None:
                return
            flow = self._flows[addr] = UdpFlow(self, addr)
            flow.task = asyncio.create_task(flow.open(endpoint))
        flow.forward(data)

    def forget(self, client: Address) -> None:
        """Let the client's next datagram make a new flow."""
        self._flows.pop(client, None)


class UdpFlow(asyncio.DatagramProtocol):
    """One client's datagrams to one endpoint, and the answers."""

    def __init__(self, service: UdpService, client: Address) -> None:
        self.task: asyncio.Task[None] | None = None
        self._service = service
        self._client = client
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self._idle = asyncio.get_running_loop().call_later(_UDP_IDLE, self.end)

    async def open(self, endpoint: Address) -> None:
        """Open the socket and send the datagrams that arrived meanwhile."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=endpoint)
        for data in self._waiting:
            self._transport.sendto(data)

    def forward(self, data: bytes) -> None:
        """Send to the endpoint."""
        self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_UDP_IDLE, self.end)
        if self._transport is None:
            self._waiting.append(data)
        else:
            self._transport.sendto(data)

    def datagram_received(self, data: bytes, addr: Address) -> None:  # noqa: ARG002
        """Send an answer back."""
        self._service.transport.sendto(data, self._client)

    def end(self) -> None:
        """Close the socket."""
        self._idle.cancel()
        self._service.forget(self._client)
        if self._transport is not None:
            self._transport.close()


class Forwarder:
    """All service ports."""

    def __init__(self) -> None:
        self._services: dict[str, TcpService | UdpService] = {}
        self._ports: dict[str, int] = {}

    async def change(self, order: dict[str, Any]) -> dict[str, int]:
        """Obey one line of input; return the ports of the keys in "put"."""
        for key in order["gone"]:
            self._services.pop(key).close()
            del self._ports[key]
        for key, (protocol, endpoints, seconds) in order["put"].items():
            if key not in self._services:
                service = UdpService() if protocol == "udp" else TcpService()
                self._ports[key] = await service.open()
                self._services[key] = service
            balancer = self._services[key].balancer
            balancer.endpoints = [(address, port) for address, port in endpoints]
            balancer.seconds = seconds
        return {key: self._ports[key] for key in order["put"]}


async def serve() -> None:
    """Obey the standard input until it ends."""
    forwarder = Forwarder()
    orders = asyncio.StreamReader(limit=1 << 30)  # a line holds a whole cluster
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := await orders.readline():
        try:
            answer = json.dumps(await forwarder.change(json.loads(line)))
        except OSError as error:
            answer = json.dumps(str(error))
        print(answer, flush=True)


def main() -> None:
    """Run with the maximum of descriptors."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
