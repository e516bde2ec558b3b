"""What troubles conntrack: entries by the hundred thousand, and packets that collide."""

import errno
import socket
import struct
from collections.abc import Iterator

from nftproxy.node.conntrack import _open
from nftproxy.table.netlink import ACK, HEADER, NESTED, REQUEST, attribute

_NEW, _CREATE = 1 << 8, 0x600
_BATCH = 200
_ASSURED = 0x0E  # seen a reply, assured, confirmed: such entries make no room for others


def fill(first: int, count: int) -> int:
    """Make UDP entries in the table of this thread's namespace; return how many the kernel took."""
    netlink = _open()
    taken = 0
    try:
        numbers = range(first, first + count)
        for start in range(0, count, _BATCH):
            batch = numbers[start : start + _BATCH]
            netlink.send(b"".join(_entry(number) for number in batch))
            left = len(batch)
            while left:
                for code in _codes(netlink.recv(1 << 20)):
                    left -= 1
                    taken += code == 0
                    assert code in {0, errno.ENOMEM}, code
    finally:
        netlink.close()
    return taken


def _codes(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        length, *_ = HEADER.unpack_from(data, position)
        yield -struct.unpack_from("=i", data, position + 16)[0]
        position += (length + 3) & ~3


def _entry(number: int) -> bytes:
    client, port = bytes((10, 9, number >> 24, number >> 16 & 255)), number & 0xFFFF
    server = bytes((10, 8, 0, 1))
    body = (
        b"\2\0\0\0"
        + _tuple(1, (client, port), (server, 53))
        + _tuple(2, (server, 53), (client, port))
        + attribute(3, _ASSURED.to_bytes(4))
        + attribute(7, (600).to_bytes(4))
    )
    return (
        struct.pack("=IHHII", 16 + len(body), _NEW, REQUEST | ACK | _CREATE, number + 1, 0) + body
    )


def _tuple(kind: int, source: tuple[bytes, int], destination: tuple[bytes, int]) -> bytes:
    addresses = attribute(1, source[0]) + attribute(2, destination[0])
    ports = (
        attribute(1, bytes([socket.IPPROTO_UDP]))
        + attribute(2, source[1].to_bytes(2))
        + attribute(3, destination[1].to_bytes(2))
    )
    return attribute(kind | NESTED, attribute(1 | NESTED, addresses) + attribute(2 | NESTED, ports))


class Collisions:
    """Pairs of first packets of one TCP connection at the same time: the second is lost.

    A queue holds both until neither is known as a connection; then it lets both go.
    """

    RULE = "iptables-legacy -A OUTPUT -p tcp --dport 9 -j NFQUEUE --queue-num 7"

    def __init__(self, target: str) -> None:
        """Made in the namespace of the packets, where RULE is loaded."""
        self._queue = _open()
        self._configure(1, struct.pack(">BxH", 1, 0))  # bind
        self._configure(2, struct.pack(">IB", 0, 1))  # give no bytes of packets
        self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._raw.connect((target, 0))

    def close(self) -> None:
        self._raw.close()
        self._queue.close()

    def meet(self, port: int) -> None:
        """Send a pair."""
        syn = struct.pack("!HHIIBBHHH", port, 9, 1, 0, 5 << 4, 2, 64240, 0, 0)
        self._raw.send(syn)
        self._raw.send(syn)
        waiting = [next(self._packets()), next(self._packets())]
        for number in waiting:
            verdict = attribute(2, struct.pack(">II", 1, number))
            self._queue.send(_queued(1, verdict))

    def _packets(self) -> Iterator[int]:
        while True:
            data = self._queue.recv(1 << 16)
            if data[4:6] == bytes((0, 3)):  # a packet: its number follows two headers
                yield int.from_bytes(data[24:28])

    def _configure(self, kind: int, value: bytes) -> None:
        self._queue.send(_queued(2, attribute(kind, value)))


def _queued(kind: int, body: bytes) -> bytes:
    """A message about queue 7."""
    head = struct.pack(">BBH", 0, 0, 7)
    return struct.pack("=IHHII", 20 + len(body), 3 << 8 | kind, REQUEST, 0, 0) + head + body
