"""An HTTP server that no client can block.

aiohttp parses and answers; a guard in front of each connection enforces the limits, with one
deadline and one count of bytes:

- a request must be complete some seconds after the connection was made, however slowly its bytes
  arrive;
- the client must read the answer some seconds after the request; then the connection may stay open
  and idle for a while;
- a request and its body have a maximum of bytes;
- there is a maximum of connections. One more closes the oldest of those that wait for a request, so
  that idle clients never keep out one with a request.

A connection that breaks a limit is reset without an answer.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from loguru import logger

from nftproxy.monitoring.response import Response


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer in pieces, until `chunks` ends or the client leaves; each must be read in time."""

    chunks: AsyncGenerator[bytes]
    headers: Mapping[str, str]


Respond = Callable[[web.BaseRequest], Awaitable[Response | Stream]]

LINE = 8190  # bytes of a request line or of one header
# Faults in strangers' requests are of no interest
_SILENT = logging.getLogger("nftproxy.monitoring.http.protocol")
_SILENT.disabled = True


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes and connections."""

    request: float = 10
    answer: float = 30
    idle: float = (
        90  # longer than scrapers and probes usually wait, so that they can keep a connection
    )
    received: int = 1 << 16
    connections: int = 256


class Server:
    """Answers with what `respond` returns, on any number of sockets; belongs to one event loop."""

    def __init__(self, respond: Respond, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._respond = respond
        self._connections: dict[asyncio.BaseTransport, _Connection] = {}
        self._http = web.Server(
            self._handle,
            access_log=None,
            logger=_SILENT,
            keepalive_timeout=self.limits.idle,
            lingering_time=0,
            max_line_size=LINE,
            max_field_size=LINE,
        )

    async def listen(self, listening: socket.socket) -> "HttpListener":
        """Accept connections of a listening socket, until the listener is closed."""
        listener = HttpListener(self, listening)
        loop = asyncio.get_running_loop()
        await loop.create_server(lambda: _Connection(self, listener, self._http()), sock=listening)
        return listener

    @property
    def connections(self) -> "list[_Connection]":
        """All connections, the oldest first."""
        return list(self._connections.values())

    def admit(self, transport: asyncio.BaseTransport, connection: "_Connection") -> bool:
        """Accept a connection if there is room, or if an idle one can make room."""
        if len(self._connections) >= self.limits.connections:
            idle = next((each for each in self._connections.values() if not each.busy), None)
            if idle is None:
                return False
            idle.abort()
        self._connections[transport] = connection
        return True

    def leave(self, transport: asyncio.BaseTransport) -> None:
        """Forget a closed connection."""
        self._connections.pop(transport, None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._connections.get(request.transport) if request.transport else None
        if connection is None:
            raise ConnectionResetError  # closed between request and answer
        connection.begin()
        try:
            answer = await self._answer(request)
            if isinstance(answer, Stream):
                return await self._stream(request, answer, connection)
            response = web.Response(
                status=answer.code,
                body=answer.body,
                headers={"Server": "nftproxy", **answer.headers},
            )
            # Written here and not by aiohttp afterwards: the deadline applies to a client that does
            # not read.
            await response.prepare(request)
            await response.write_eof()
        finally:
            connection.end()
        return response

    async def _stream(
        self, request: web.BaseRequest, stream: Stream, connection: "_Connection"
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Server": "nftproxy", **stream.headers})
        async with contextlib.aclosing(stream.chunks) as chunks:
            await response.prepare(request)
            async for chunk in chunks:
                connection.begin()  # so much time for this piece
                await response.write(chunk)
                connection.rest()
        await response.write_eof()
        return response

    async def _answer(self, request: web.BaseRequest) -> Response | Stream:
        try:
            return await self._respond(request)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - one bad answer must not end the server
            logger.exception("no answer to {} {}", request.method, request.path)
            return Response(500, b"internal error\n", {"Content-Type": "text/plain; charset=utf-8"})


class HttpListener:
    """One listening socket of a server."""

    def __init__(self, server: Server, listening: socket.socket) -> None:
        self.closed = False
        self._of = server
        self._listening = listening

    def close(self) -> None:
        """Stop listening and reset this socket's connections.

        Not by `asyncio.Server.close`: a connection accepted in the same turn of the loop would fail
        to attach to it, and stay open and unanswered until the garbage is collected.
        """
        if not self.closed:
            self.closed = True  # for connections that are just being accepted
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
        for connection in self._of.connections:
            if connection.listener is self:
                connection.abort()


class _Connection(asyncio.Protocol):
    """The guard in front of aiohttp's protocol of one connection."""

    def __init__(self, server: Server, listener: HttpListener, inner: asyncio.Protocol) -> None:
        self.listener = listener
        self.busy = False
        self._server = server
        self._inner = inner
        self._received = 0
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Note that a request is complete."""
        self.busy = True
        self._arm(self._server.limits.answer)

    def end(self) -> None:
        """Note that its answer is written."""
        self.busy = False
        self._received = 0
        self._arm(self._server.limits.idle)

    def rest(self) -> None:
        """Note that a piece of its answer is written; the next one may take any time."""
        if self._deadline:
            self._deadline.cancel()

    def abort(self) -> None:
        """Reset the connection."""
        if self._transport:
            self._server.leave(self._transport)  # at once: the loop reports it only later
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what a stream server makes
        self._transport = transport
        self._inner.connection_made(transport)
        if not self.listener.closed and self._server.admit(transport, self):
            self._arm(self._server.limits.request)
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._server.limits.received:
            self.abort()
        else:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        if self._transport:
            self._server.leave(self._transport)
            self._transport = None
        self._inner.connection_lost(exc)

    def _arm(self, seconds: float) -> None:
        if self._deadline:
            self._deadline.cancel()
        if self._transport:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self.abort)
