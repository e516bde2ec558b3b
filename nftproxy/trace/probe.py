"""Connections that this node makes itself, to have something to trace."""

import errno
import socket
import time
from collections.abc import Iterable
from itertools import cycle, islice

from nftproxy.errors import UnusableError
from nftproxy.routes import Frontend

_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_UNSENT = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}
_PAUSE = 0.2  # seconds from one to the next


class Probe:
    """A number of connections, to one frontend after the other; open until the end of all."""

    def __init__(self, frontends: Iterable[Frontend], count: int) -> None:
        self._waiting = list(islice(cycle(frontends), count))
        self._sockets: list[socket.socket] = []
        self._next = 0.0
        self.unsent: list[tuple[Frontend, str]] = []
        """Those that the kernel would not begin, and why."""

    def tick(self) -> None:
        """Begin the next connection if it is time for it."""
        if self._waiting and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PAUSE
            self._begin(self._waiting.pop(0))

    def close(self) -> None:
        """Close all connections."""
        for each in self._sockets:
            each.close()

    def _begin(self, frontend: Frontend) -> None:
        family = socket.AF_INET6 if ":" in frontend.address else socket.AF_INET
        try:
            found = socket.socket(family, *_KINDS[frontend.proto])
        except OSError as error:
            raise UnusableError(f"this kernel has no {frontend.proto}: {error.strerror}") from error
        self._sockets.append(found)
        found.setblocking(False)  # noqa: FBT003 - its signature
        code = found.connect_ex((frontend.address, frontend.port))
        if code == 0 and frontend.proto == "udp":
            try:
                found.send(b"\n")
            except OSError as error:  # a rule that drops on the way out; its report says which
                code = error.errno or 0
        if code in _UNSENT:
            self.unsent.append((frontend, errno.errorcode[code]))
