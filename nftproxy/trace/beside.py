"""Looking for answers beside the hooks: what an endpoint sends, as interfaces see it.

An answer that crosses a bridge past netfilter, or is dropped before connection tracking, meets no
rule that could report it. The socket is opened only while a connection waits for its answer, and
its filter passes only the packets of such endpoints.
"""

import ctypes
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from nftproxy.kernel.headers import PacketEnd, packet_of
from nftproxy.path.ruleset import Link
from nftproxy.table.netlink import SO_ATTACH_FILTER
from nftproxy.trace.flows import Aside, TracedFlow

_EVERYTHING = 0x0003  # ETH_P_ALL
_HOST, _OUTGOING = 0, 4  # PACKET_*
_MOST = 32  # endpoints at once
_BYTE, _HALF, _WORD, _AND, _EQUAL, _RETURN = 0x30, 0x28, 0x20, 0x54, 0x15, 0x06
_LENGTH_OF_IPV4, _HALF_AFTER = 0xB1, 0x48  # x = 4 * (P[k] & 0xf); a = P[x + k : 2]


class Beside:
    """Packets that endpoints send."""

    def __init__(self, links: Mapping[str, Link]) -> None:
        """Open the socket; PermissionError without NET_RAW."""
        self.socket = socket.socket(
            socket.AF_PACKET,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.htons(_EVERYTHING),
        )
        _attach(self.socket, program(()))
        self._links = links
        self._watched: dict[PacketEnd, list[TracedFlow]] = {}

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def watch(self, flow: TracedFlow) -> None:
        """Look for what the endpoint of a connection sends."""
        self._watched.setdefault(flow.final.destination, []).append(flow)
        if len(self._watched) <= _MOST:
            _attach(self.socket, program(self._watched))

    def read(self) -> None:
        """Note what has been seen with the connections that it answers."""
        with suppress(BlockingIOError):
            while True:
                data, (interface, _, kind, *_) = self.socket.recvfrom(256)
                header = packet_of(data)
                if header is None or kind == _OUTGOING:
                    continue
                link = self._links.get(interface)
                ours = kind == _HOST and not (link and link.master)
                for flow in self._watched.get(header.source, ()):
                    if header.way() == flow.final.reversed() and not flow.answered:
                        flow.asides.append(Aside(interface, header, ours))


def program(ends: Iterable[PacketEnd]) -> list[tuple[int, int, int, int]]:
    """Return a filter for packets from addresses and ports.

    Operation, jump if so, jump if not, operand.
    """
    found: list[tuple[int, int, int, int]] = []
    for end in ends:
        block = list(_block(end))
        size = len(block) + 1
        # Whoever does not compare goes on behind this block.
        found += [
            (code, 0, size - index - 1 if code == _EQUAL else 0, operand)
            for index, (code, operand) in enumerate(block)
        ]
        found.append((_RETURN, 0, 0, 256))
    return [*found, (_RETURN, 0, 0, 0)]


def _block(end: PacketEnd) -> Iterator[tuple[int, int]]:
    four = len(end.address) == 4
    yield from ((_BYTE, 0), (_AND, 0xF0), (_EQUAL, 0x40 if four else 0x60))
    start = 12 if four else 8
    for offset in range(0, len(end.address), 4):
        yield _WORD, start + offset
        yield _EQUAL, int.from_bytes(end.address[offset : offset + 4])
    if four:
        yield from ((_LENGTH_OF_IPV4, 0), (_HALF_AFTER, 0))
    else:
        yield _HALF, 40
    yield _EQUAL, end.port


def _attach(sock: socket.socket, instructions: list[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("=HBBI", *one) for one in instructions)
    buffer = ctypes.create_string_buffer(code)
    sock.setsockopt(
        socket.SOL_SOCKET,
        SO_ATTACH_FILTER,
        struct.pack("@HP", len(instructions), ctypes.addressof(buffer)),
    )
