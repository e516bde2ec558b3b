"""The far end.

`python -m nftproxy.bench.server` answers on all addresses of its namespace until its input ends.

It accepts TCP connections and counts their bytes; when the client has no more to send, it gets the
count as a line. A datagram returns from the address that it was sent to.
"""

import selectors
import socket
import sys
from collections.abc import Callable

from nftproxy.bench.workload import ENDPOINT_PORT

_IP_PKTINFO = 8  # socket.IP_PKTINFO, which Python 3.11 does not name
_ROUND = 64  # connections or datagrams in one turn


class EndpointServer:
    """Sockets and the loop that serves them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._counts: dict[socket.socket, int] = {}
        self._buffer = bytearray(1 << 18)
        stream = socket.create_server(("", ENDPOINT_PORT), backlog=65535)
        stream.settimeout(0)
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagram.settimeout(0)
        datagram.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        datagram.bind(("", ENDPOINT_PORT))
        self._add(stream, self._accept)
        self._add(datagram, self._reply)

    def run(self) -> None:
        """Serve until the input ends."""
        self._selector.register(sys.stdin, selectors.EVENT_READ, None)
        print("ready", flush=True)
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)

    def _add(self, found: socket.socket, action: Callable[[socket.socket], None]) -> None:
        self._selector.register(found, selectors.EVENT_READ, action)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ROUND):
            try:
                connection, _ = listening.accept()
            except OSError:  # nothing pending, or the client gave up meanwhile
                return
            connection.settimeout(0)
            self._counts[connection] = 0
            self._add(connection, self._count)

    def _count(self, connection: socket.socket) -> None:
        try:
            received = connection.recv_into(self._buffer)
            if received:
                self._counts[connection] += received
                return
            connection.send(b"%d\n" % self._counts[connection])
        except BlockingIOError:
            return
        except OSError:  # reset, as by clients that only measure connecting
            pass
        self._selector.unregister(connection)
        del self._counts[connection]
        connection.close()

    def _reply(self, receiving: socket.socket) -> None:
        for _ in range(_ROUND):
            try:
                data, ancillary, _, peer = receiving.recvmsg(2048, 64)
                level, kind, info = ancillary[0]
                receiving.sendmsg(
                    [data], [(level, kind, bytes(4) + info[8:12] + bytes(4))], 0, peer
                )
            except BlockingIOError:
                return
            except OSError:  # no route back
                continue


if __name__ == "__main__":
    EndpointServer().run()
