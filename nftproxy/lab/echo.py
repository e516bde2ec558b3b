"""Servers that answer with their name and the client's address: the far end of every packet test.

One server holds the listening sockets of a whole lab, each opened inside the namespace it serves.
The answer is one line of JSON

    {"name": "pod1-1", "protocol": "TCP", "port": 8080, "address": "10.244.1.2",
     "source": "10.244.2.2", "source_port": 41234}

where address and port are the server's own (after any translation) and the source is that of the
packet. TCP, and SCTP where the kernel has it: the server sends the line at once, then every byte
back until the client closes; it drops a client that does not read. UDP: one answer for each
datagram, from the address that it was sent to, also on a node with many.
"""

import itertools
import os
import select
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from nftproxy.address import Family
from nftproxy.lab.client import SOCKETS
from nftproxy.lab.namespace import enter

_IP_PKTINFO = 8  # socket.IP_PKTINFO, which Python 3.11 does not name
_BACKLOG = 4096
_BATCH = 64  # connections or datagrams of one socket before the others get their turn
_AF = {Family.IPv4: socket.AF_INET, Family.IPv6: socket.AF_INET6}


class EchoListener(NamedTuple):
    """The key of a server's count."""

    name: str
    port: int
    protocol: str


class EchoServer:
    """The sockets and the loop that serves them, in a thread of its own between `start` and `stop`.

    `counts` has the number of TCP connections and UDP datagrams per listener since the start; it
    may be cleared.
    """

    def __init__(self) -> None:
        self.counts: Counter[EchoListener] = Counter()
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._handlers: dict[int, Callable[[socket.socket], None]] = {}
        self._listening: dict[
            int, tuple[str, EchoListener]
        ] = {}  # by descriptor: namespace and more
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._finished = False
        self._thread = threading.Thread(target=self._loop, name="echo", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close all sockets and connections and end the thread."""
        if self._thread.is_alive():
            self._order(self._finish)
            self._thread.join()
        for sock in self._sockets.values():
            sock.close()
        self._epoll.close()
        os.close(self._wake)

    def listen(
        self,
        namespace: str,
        name: str,
        ports: Iterable[int],
        protocols: Iterable[str] = ("TCP", "UDP"),
        families: Iterable[str] = tuple(Family),
    ) -> None:
        """Answer as `name` on all addresses of a namespace; OSError when a port is taken.

        Works before and after `start`.
        """
        opened: list[tuple[socket.socket, EchoListener]] = []
        try:
            with enter(namespace):
                for protocol, family, port in itertools.product(protocols, families, ports):
                    opened.append(
                        (_open(protocol, Family(family), port), EchoListener(name, port, protocol))
                    )
        except BaseException:
            for sock, _ in opened:
                sock.close()
            raise
        for sock, listener in opened:
            self._listening[sock.fileno()] = namespace, listener
            self._add(sock, self._reply if listener.protocol == "UDP" else self._accept)

    def close(self, namespace: str, ports: Iterable[int] | None = None) -> None:
        """Stop listening in a namespace on some ports or all; connections stay.

        Returns when the sockets are closed.
        """
        chosen = None if ports is None else set(ports)

        def close() -> None:
            for descriptor, (where, listener) in list(self._listening.items()):
                if where == namespace and (chosen is None or listener.port in chosen):
                    del self._listening[descriptor]
                    self._drop(self._sockets[descriptor])

        self._order(close)

    def _order(self, action: Callable[[], None]) -> None:
        """Run something in the loop, between events, and wait for it."""
        if not self._thread.is_alive():
            action()
            return
        done = threading.Event()
        self._orders += [action, done.set]
        os.eventfd_write(self._wake, 1)
        done.wait()

    def _finish(self) -> None:
        self._finished = True

    def _loop(self) -> None:
        while not self._finished:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._wake:
                    self._take_orders()
                elif sock := self._sockets.get(
                    descriptor
                ):  # None: closed by an earlier event of this round
                    self._handlers[descriptor](sock)

    def _take_orders(self) -> None:
        os.eventfd_read(self._wake)
        while self._orders:
            self._orders.popleft()()

    def _add(self, sock: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        self._sockets[sock.fileno()] = sock
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _drop(self, sock: socket.socket) -> None:
        del self._sockets[sock.fileno()], self._handlers[sock.fileno()]
        sock.close()

    def _accept(self, server: socket.socket) -> None:
        _, listener = self._listening[server.fileno()]
        for _ in range(_BATCH):
            try:
                connection, peer = server.accept()
            except OSError:  # nothing pending, or the client gave up meanwhile
                return
            connection.settimeout(0)
            self.counts[listener] += 1  # before the client can notice
            try:
                connection.send(_answer(listener, connection.getsockname()[0], peer))
            except OSError:
                connection.close()
                continue
            self._add(connection, self._echo)

    def _echo(self, connection: socket.socket) -> None:
        try:
            received = connection.recv(65536)
            finished = connection.send(received) < len(received) or not received
        except (
            BlockingIOError
        ):  # the event was for a closed socket whose number this connection got
            return
        except OSError:
            finished = True
        if finished:
            self._drop(connection)

    def _reply(self, server: socket.socket) -> None:
        _, listener = self._listening[server.fileno()]
        for _ in range(_BATCH):
            try:
                _, ancillary, _, peer = server.recvmsg(65536, 64)
                level, kind, info = ancillary[0]
                address, source = _packet_info(level, info)
                self.counts[listener] += 1
                server.sendmsg([_answer(listener, address, peer)], [(level, kind, source)], 0, peer)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error for an earlier answer, or no route back
                continue


def _open(protocol: str, family: Family, port: int) -> socket.socket:
    """Return a listening socket in the namespace of the calling thread."""
    sock = socket.socket(_AF[family], *SOCKETS[protocol])
    try:
        sock.settimeout(0)
        if family is Family.IPv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol != "UDP":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif family is Family.IPv4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.bind(("", port))
        if protocol != "UDP":
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _packet_info(level: int, info: bytes) -> tuple[str, bytes]:
    """Return a datagram's destination, and the ancillary data that sends from there."""
    if (
        level == socket.IPPROTO_IP
    ):  # struct in_pktinfo: interface, local address, destination in the header
        address = info[8:12]
        return socket.inet_ntop(socket.AF_INET, address), struct.pack(
            "=i4s4s", 0, address, bytes(4)
        )
    return socket.inet_ntop(socket.AF_INET6, info[:16]), info[:16] + bytes(4)


def _answer(listener: EchoListener, address: str, peer: tuple[str, int]) -> bytes:
    # Names and addresses need no escape in JSON; json.dumps costs as much as the whole accept.
    return (
        f'{{"name": "{listener.name}", "protocol": "{listener.protocol}", "port": {listener.port},'
        f' "address": "{address}", "source": "{peer[0]}", "source_port": {peer[1]}}}\n'
    ).encode()
