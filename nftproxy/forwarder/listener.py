"""The listening socket of one NodePort on a loopback address."""

import asyncio
import errno
import socket
from collections.abc import Callable

from nftproxy.address import Family
from nftproxy.forwarder.messages import LocalFrontend

ACCEPTED = 32  # connections accepted in one turn of the loop, so that other NodePorts have theirs
PAUSE = 0.2  # seconds without accepting when there are no descriptors or no memory
BACKLOG = 512
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class LocalListener:
    """Accepts connections until it is closed; OSError if its port is taken."""

    def __init__(
        self, frontend: LocalFrontend, accepted: Callable[[LocalFrontend, socket.socket], None]
    ) -> None:
        ipv6 = frontend.family is Family.IPv6
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._loop = asyncio.get_running_loop()
        self._frontend = frontend
        self._accepted = accepted
        self._pause: asyncio.TimerHandle | None = None
        self._socket = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, kind)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("::1" if ipv6 else "127.0.0.1", frontend.port))
            self._socket.listen(BACKLOG)
        except BaseException:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Stop listening: the kernel refuses connections from now on."""
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTED):
            try:
                client, _ = self._socket.accept()
            except OSError as error:  # no more, or a client that has left
                if error.errno not in _SHORT:
                    return
                # The socket stays readable: without a pause the loop would do nothing else.
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(
                    PAUSE, self._loop.add_reader, self._socket, self._accept
                )
                return
            client.setblocking(False)  # noqa: FBT003 - the name of the method says it
            self._accepted(self._frontend, client)
