"""A forwarded connection: a local client, an endpoint, and two directions between them.

Ends that are half closed stay so, an error on one side resets the other, and a connection that
neither side uses ends after a while. Nothing is read from a client before its endpoint answers.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from nftproxy.forwarder.bounds import Bounds
from nftproxy.forwarder.direction import Direction, PipePool

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class Forwarded:
    """One connection, from `open` until `ended` is called."""

    def __init__(
        self,
        client: socket.socket,
        pool: PipePool,
        bounds: Bounds,
        *,
        moved: Callable[["Forwarded"], None],
        ended: Callable[["Forwarded"], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._pool = pool
        self._bounds = bounds
        self._moved = moved
        self._ended = ended
        self._endpoint: socket.socket | None = None
        self._directions: list[Direction] = []
        self._open = 0  # directions that have not ended
        self._timer: asyncio.TimerHandle | None = None
        self.used = self._loop.time()

    def open(self, address: str, port: int) -> None:
        """Connect to an endpoint, and forward once it answers."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._endpoint = socket.socket(family, kind)
            with contextlib.suppress(BlockingIOError):  # EINPROGRESS
                self._endpoint.connect((address, port))
        except OSError:
            self.reset()
            return
        self._loop.add_writer(self._endpoint, self._connected)
        self._timer = self._loop.call_later(self._bounds.connecting, self.reset)

    def reset(self) -> None:
        """Reset both sides."""
        for each in filter(None, (self._client, self._endpoint)):
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _connected(self) -> None:
        assert self._endpoint  # noqa: S101 - it was connected to
        self._loop.remove_writer(self._endpoint)
        if self._timer:
            self._timer.cancel()
        if self._endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.reset()
            return
        for each in (self._client, self._endpoint):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # An endpoint whose node vanished never answers again
        self._endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            self._endpoint.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        for source, sink in (
            (self._client, self._endpoint),
            (self._endpoint, self._client),
        ):
            self._directions.append(
                Direction(source, sink, self._pool, moved=self._use, ended=self._end)
            )
        self._open = len(self._directions)
        self._use()
        self._watch()
        for direction in self._directions:
            direction.start()

    def _use(self) -> None:
        self.used = self._loop.time()
        self._moved(self)

    def _watch(self) -> None:
        """End the connection when it was idle for too long; look again when it could be."""
        left = self.used + self._bounds.idle - self._loop.time()
        if left <= 0:
            self.reset()
        else:
            self._timer = self._loop.call_later(left, self._watch)

    def _end(self, error: OSError | None) -> None:
        self._open -= 1
        if error:
            self.reset()
        elif not self._open:
            self._close()

    def _close(self) -> None:
        if self._timer:
            self._timer.cancel()
        for direction in self._directions:
            direction.stop()
        self._directions.clear()
        if self._endpoint:
            self._loop.remove_writer(self._endpoint)
            self._endpoint.close()
            self._endpoint = None
        if self._client.fileno() >= 0:
            self._client.close()
            self._ended(self)
