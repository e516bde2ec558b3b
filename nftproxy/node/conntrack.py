"""Deletion of UDP conntrack entries that lead nowhere any more (contract 6.2).

One dump per clean-up, of one family and, as far as the kernel can filter (5.8 and later), of UDP
only; then one deletion for each stale entry. The reader knows where the kernel puts each field of
an entry and keeps none in memory: 250 000 entries of others take 0.6 s if they are UDP and 0.06 s
if not. (pyroute2, which decodes every attribute: 20 s for 100 000.) A deletion names an entry by
its tuple *and* its id, which stands for both directions, so an entry that was replaced since the
dump stays.

`udpflows` decides which entries may stay. TCP and SCTP are never touched.
"""

import errno
import os
import socket
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from loguru import logger

from nftproxy.address import Family, pack
from nftproxy.errors import KernelError
from nftproxy.node.udpflows import Expected, UdpFlows
from nftproxy.table.netlink import (
    ACK,
    ATTRIBUTE,
    CAP_ACK,
    DONE,
    DUMP,
    DUMP_INTERRUPTED,
    ERROR,
    HEADER,
    NESTED,
    NETFILTER,
    REQUEST,
    SOL_NETLINK,
    attribute,
    attributes,
    message,
    nested,
)

ATTEMPTS = 5  # contract 6.2.6
_BATCH = 100  # deletions in one message; their acknowledgements must fit into the receive buffer
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # of NFNL_SUBSYS_CTNETLINK
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUMBER, _PROTO_SOURCE, _PROTO_DESTINATION = 1, 2, 3
_FILTER_ORIGINAL = 1
_BY_PROTOCOL = 1 << 3
_AF = {Family.IPv4: socket.AF_INET, Family.IPv6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a clean-up did, for metrics (contract 6.2.8).

    Not `complete`: the dump was interrupted every time.
    """

    deleted: int
    seconds: float
    complete: bool


class Socket(Protocol):
    """The methods of a netlink socket in use here."""

    def send(self, data: bytes, /) -> int: ...  # noqa: D102
    def recv(self, size: int, /) -> bytes: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Conntrack:
    """The conntrack table of the network namespace of the thread that made this object.

    Not for two threads at the same time.
    """

    def __init__(self, sock: Socket | None = None) -> None:
        self._socket = sock or _open()
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def reconcile(self, flows: UdpFlows) -> Cleaned | None:
        """Clean up if that is due.

        Return None if it is not due, or if it failed: the log says so, and it stays due (contract
        6.2.6).
        """
        if not flows.due:
            return None
        try:
            cleaned = self.clean(flows.family, flows.expected(), flows.here)
        except KernelError as error:
            logger.error(
                "{}: stale UDP conntrack entries stay until the next sync: {} ({})",
                flows.family,
                error,
                error.hint,
            )
            return None
        if cleaned.complete:
            flows.cleaned()
        return cleaned

    def clean(
        self, family: Family, expected: Expected, nodeport_addresses: Collection[str]
    ) -> Cleaned:
        """Delete the stale UDP entries of a family; KernelError if the table cannot be read.

        `nodeport_addresses` are those of this node that accept NodePorts: an entry to the number of
        a NodePort at any other address belongs to somebody else (kube-proxy deletes it, contract
        6.2.3).
        """
        start = time.monotonic()
        judge = Judge(family, expected, nodeport_addresses)
        try:
            stale, complete = self._stale(judge)
            deleted = self._delete(judge, stale)
        except OSError as error:
            raise KernelError(
                f"conntrack netlink: {error.strerror}",
                hint="needs the capability NET_ADMIN and the kernel module nf_conntrack_netlink",
            ) from error
        return Cleaned(deleted, time.monotonic() - start, complete)

    def _stale(self, judge: "Judge") -> tuple[list[bytes], bool]:
        """Return the identity of each stale entry, and whether the dump was complete."""
        stale: list[bytes] = []
        for _ in range(ATTEMPTS):
            self._sequence += 1
            self._socket.send(message(_GET, REQUEST | DUMP, self._sequence, judge.request))
            stale, complete = self._dump(judge)
            if complete:
                return stale, True
        return stale, False

    def _dump(self, judge: "Judge") -> tuple[list[bytes], bool]:
        stale: list[bytes] = []
        complete = True
        while True:
            data = self._socket.recv(1 << 20)
            position, end = 0, len(data)
            while position < end:
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, position)
                if sequence != self._sequence:
                    pass
                elif kind > DONE:
                    if judge.is_stale(data, position, length):
                        stale.append(judge.identity(data, position, length))
                elif kind in {ERROR, DONE}:
                    code = -struct.unpack_from("=i", data, position + 16)[0] if length >= 20 else 0
                    if code not in {0, errno.EINTR}:
                        raise OSError(code, os.strerror(code))
                    return stale, complete and not code and not flags & DUMP_INTERRUPTED
                complete = complete and not flags & DUMP_INTERRUPTED
                position += (length + 3) & ~3

    def _delete(self, judge: "Judge", stale: list[bytes]) -> int:
        """Delete entries and count those that still existed."""
        deleted = 0
        for start in range(0, len(stale), _BATCH):
            batch = stale[start : start + _BATCH]
            first = self._sequence + 1
            self._sequence += len(batch)
            messages = [
                message(_DELETE, REQUEST | ACK, first + number, judge.head + identity)
                for number, identity in enumerate(batch)
            ]
            self._socket.send(b"".join(messages))
            deleted += self._acknowledged(first)
        return deleted

    def _acknowledged(self, first: int) -> int:
        """Read the answers up to the last request and count the successes."""
        count = 0
        while True:
            data = self._socket.recv(1 << 20)
            position = 0
            while position < len(data):
                length, kind, _, sequence, _ = HEADER.unpack_from(data, position)
                if kind == ERROR and sequence >= first:
                    count += not any(data[position + 16 : position + 20])
                    if sequence == self._sequence:
                        return count
                position += (length + 3) & ~3


class Flow(NamedTuple):
    """The deciding part of an entry.

    Packed addresses, each followed by the two bytes of its port.
    """

    protocol: int
    destination: bytes  # whom the client asked for
    source: bytes  # who answers


class Judge:
    """Recognizes stale entries of one family by the bytes of the kernel's messages. Pure."""

    def __init__(
        self, family: Family, expected: Expected, nodeport_addresses: Collection[str]
    ) -> None:
        self.head = struct.pack("=BBH", _AF[family], 0, 0)
        only_udp = nested(
            _TUPLE_ORIGINAL,
            nested(_TUPLE_PROTO, attribute(_PROTO_NUMBER, bytes([socket.IPPROTO_UDP]))),
        )
        self.request = (
            self.head
            + only_udp
            + nested(_FILTER, attribute(_FILTER_ORIGINAL, struct.pack("=I", _BY_PROTOCOL)))
        )
        self._at: dict[bytes, frozenset[bytes]] = {}
        self._at_nodeport: dict[bytes, frozenset[bytes]] = {}
        for frontend, endpoints in expected.items():
            port = frontend.port.to_bytes(2)
            sources = frozenset(pack(e.address) + e.port.to_bytes(2) for e in endpoints)
            if not frontend.is_node_port:
                self._at[pack(frontend.address) + port] = sources
            else:
                self._at_nodeport[port] = sources
        self._ports = {key[-2:] for key in self._at} | self._at_nodeport.keys()
        self._here = {pack(address) for address in nodeport_addresses}
        self._place(4 if family is Family.IPv4 else 16)

    def is_stale(self, data: bytes, position: int, length: int) -> bool:
        """Whether the entry in the message at `position` is stale."""
        if not data.startswith(self._original, position + 20):
            return self._stale(_flow(data, position + 20, position + length))
        port = position + self._port_at
        if data[port : port + 2] not in self._ports:
            return False
        if not data.startswith(self._reply, position + self._reply_at):
            return self._stale(_flow(data, position + 20, position + length))
        address, source, source_port = (
            position + self._address_at,
            position + self._source_at,
            position + self._source_port_at,
        )
        size = self._size
        return self._stale(
            Flow(
                data[position + self._protocol_at],
                data[address : address + size] + data[port : port + 2],
                data[source : source + size] + data[source_port : source_port + 2],
            )
        )

    def identity(self, data: bytes, position: int, length: int) -> bytes:
        """Return the attributes that name exactly this entry: original tuple, id and zone."""
        return b"".join(
            data[start - 4 : end] + bytes(-end % 4)
            for kind, (start, end) in attributes(data, position + 20, position + length)
            if kind in {_TUPLE_ORIGINAL, _ID, _ZONE}
        )

    def _stale(self, flow: Flow) -> bool:
        protocol, destination, source = flow
        if protocol != socket.IPPROTO_UDP:
            return False
        expected = self._at.get(destination)
        if expected is None and destination[:-2] in self._here:
            expected = self._at_nodeport.get(destination[-2:])
        if expected is None:
            return False
        return source not in expected if expected else source != destination

    def _place(self, size: int) -> None:
        """Compute the places of fields in a message.

        The kernel writes a tuple always in the same order.
        """
        addresses = 4 + 2 * (4 + size)
        whole = 4 + addresses + 4 + 3 * 8
        kinds = ATTRIBUTE.pack(addresses, _TUPLE_IP | NESTED) + ATTRIBUTE.pack(
            4 + size, 1 if size == 4 else 3
        )
        self._original = ATTRIBUTE.pack(whole, _TUPLE_ORIGINAL | NESTED) + kinds
        self._reply = ATTRIBUTE.pack(whole, _TUPLE_REPLY | NESTED) + kinds
        self._size = size
        self._address_at = 20 + 16 + size
        self._protocol_at = 20 + 4 + addresses + 8
        self._port_at = self._protocol_at + 16
        self._reply_at = 20 + whole
        self._source_at = self._reply_at + 12
        self._source_port_at = self._protocol_at + 8 + whole


def _flow(data: bytes, start: int, end: int) -> Flow:
    """Read an entry attribute by attribute, in any order."""
    tuples = {}
    for kind, where in attributes(data, start, end):
        if kind in {_TUPLE_ORIGINAL, _TUPLE_REPLY}:
            parts: dict[tuple[int, int], bytes] = {}
            for part, inner in attributes(data, *where):
                parts |= (
                    {(part, number): data[a:b] for number, (a, b) in attributes(data, *inner)}
                    if part < 3
                    else {}
                )
            tuples[kind] = parts
    original, reply = tuples.get(_TUPLE_ORIGINAL, {}), tuples.get(_TUPLE_REPLY, {})
    return Flow(
        (original.get((_TUPLE_PROTO, _PROTO_NUMBER)) or b"\0")[0],
        (original.get((_TUPLE_IP, 2)) or original.get((_TUPLE_IP, 4), b""))
        + original.get((_TUPLE_PROTO, _PROTO_DESTINATION), b""),
        (reply.get((_TUPLE_IP, 1)) or reply.get((_TUPLE_IP, 3), b""))
        + reply.get((_TUPLE_PROTO, _PROTO_SOURCE), b""),
    )


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.setsockopt(SOL_NETLINK, CAP_ACK, 1)
    sock.bind((0, 0))
    return sock
