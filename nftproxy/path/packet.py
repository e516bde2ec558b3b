"""The first packet of a connection, as rules see it.

Addresses, headers, interfaces, mark, and what conntrack knows.

Pure. What nobody can know before the packet is sent (lengths, sequence numbers, the source port if
the kernel chooses it) is marked as unknown bit by bit, so that a rule which looks at the rest is
still decided.
"""

import struct
from dataclasses import dataclass, replace
from enum import IntFlag

from nftproxy.address import bracketed, unpack
from nftproxy.table.expressions import Base

TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()} | {
    ICMP: "icmp",
    ICMPV6: "icmpv6",
}
ETHERNET = {4: b"\x08\x00", 16: b"\x86\xdd"}  # by the length of an address
NF_PROTOCOL = {4: 2, 16: 10}

Known = tuple[bytes, bytes]
"""Bytes, and which of their bits are known."""


class CtState(IntFlag):
    """What `ct state` compares with."""

    INVALID = 1
    NEW = 8
    UNTRACKED = 64


class CtStatus(IntFlag):
    """What `ct status` compares with, as far as a new connection can have it."""

    SOURCE_TRANSLATED = 0x10
    DESTINATION_TRANSLATED = 0x20
    SOURCE_DONE = 0x80
    DESTINATION_DONE = 0x100


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a connection; a port is None where it is not known yet."""

    source: bytes
    destination: bytes
    source_port: int | None
    destination_port: int | None


@dataclass(frozen=True, slots=True)
class Tracked:
    """What conntrack holds of a new connection."""

    original: Ends
    status: CtStatus = CtStatus(0)  # noqa: RUF009 - a constant
    mark: int | None = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet at one place of its way.

    `written` are bytes of headers that rules have changed, by base and offset; `learnt` are keys
    that rules put into sets or took out of them on its way: the set's name with its table, the key,
    and whether it is in.
    """

    ends: Ends
    protocol: int
    iif: str = ""
    oif: str = ""
    mark: int | None = 0  # None: not known
    tracked: Tracked | None = None
    untracked: bool = False
    written: tuple[tuple[int, int, int], ...] = ()
    learnt: tuple[tuple[str, bytes, bool], ...] = ()

    @property
    def size(self) -> int:
        """The length of its addresses: 4 or 16."""
        return len(self.ends.source)

    @property
    def state(self) -> CtState:
        """What `ct state` says of it."""
        if self.tracked:
            return CtState.NEW
        return CtState.UNTRACKED if self.untracked else CtState.INVALID

    def track(self) -> "Packet":
        """Pass conntrack."""
        return self if self.untracked or self.tracked else replace(self, tracked=Tracked(self.ends))

    def at(self, iif: str, oif: str) -> "Packet":
        """Be somewhere else."""
        return replace(self, iif=iif, oif=oif)

    def marked(self, mark: int | None) -> "Packet":
        """Bear another mark."""
        return replace(self, mark=mark)

    def translated(self, *, destination: bool, address: bytes | None, port: int | None) -> "Packet":
        """Have another destination or source; None leaves a part as it is."""
        ends = self.ends
        if destination:
            there = ends.destination_port if port is None else port
            ends = replace(ends, destination=address or ends.destination, destination_port=there)
            status = CtStatus.DESTINATION_TRANSLATED if ends != self.ends else CtStatus(0)
        else:
            # The kernel may choose another port
            ends = replace(ends, source=address or ends.source, source_port=port)
            status = CtStatus.SOURCE_TRANSLATED
        tracked = self.tracked and replace(self.tracked, status=self.tracked.status | status)
        return replace(self, ends=ends, tracked=tracked)

    def done(self, *, destination: bool) -> "Packet":
        """Have had its turn of translation at a hook."""
        status = CtStatus.DESTINATION_DONE if destination else CtStatus.SOURCE_DONE
        tracked = self.tracked and replace(self.tracked, status=self.tracked.status | status)
        return replace(self, tracked=tracked)

    def header(self, base: int) -> Known | None:
        """Return a header; None where the packet has none there."""
        if base == Base.NETWORK:
            found = _ipv4(self) if self.size == 4 else _ipv6(self)
        elif base == Base.TRANSPORT:
            found = _transport(self)
        elif base == Base.LINK and self.iif:
            found = bytes(12) + ETHERNET[self.size], bytes(12) + b"\xff\xff"
        else:
            return None
        data, known = bytearray(found[0]), bytearray(found[1])
        for place, offset, value in self.written:
            if place == base and offset < len(data):
                data[offset], known[offset] = value, 0xFF
        return bytes(data), bytes(known)

    def write(self, base: int, offset: int, value: bytes) -> "Packet":
        """Have bytes of a header changed by a rule."""
        packet = replace(
            self,
            written=(
                *self.written,
                *((base, offset + index, byte) for index, byte in enumerate(value)),
            ),
        )
        found = packet.header(base)
        if found is None:
            return packet
        data = found[0]
        if base == Base.NETWORK:
            start = 12 if self.size == 4 else 8
            source, destination = (
                data[start : start + self.size],
                data[start + self.size : start + 2 * self.size],
            )
            return replace(packet, ends=replace(self.ends, source=source, destination=destination))
        if base == Base.TRANSPORT and self.protocol in PROTOCOL_NAMES and offset < 4:
            here, there = struct.unpack(">HH", data[:4])
            if all(byte == 0xFF for byte in found[1][:2]):
                return replace(
                    packet, ends=replace(self.ends, source_port=here, destination_port=there)
                )
            return replace(packet, ends=replace(self.ends, destination_port=there))
        return packet


def text(address: bytes) -> str:
    """Return an address as people write it."""
    return unpack(address)


def place(address: bytes, port: int | None) -> str:
    """Return an address and a port as people write them."""
    host = text(address)
    if not port:
        return host
    return f"{bracketed(host)}:{port}"


def _ipv4(packet: Packet) -> Known:
    ends = packet.ends
    data = (
        bytes((0x45, 0, 0, 0, 0, 0, 0, 0, 0, packet.protocol, 0, 0))
        + ends.source
        + ends.destination
    )
    # Known: version, traffic class, that it is no fragment (though not whether it may become one),
    # protocol, addresses.
    known = b"\xff\xff\x00\x00\x00\x00\xbf\xff\x00\xff\x00\x00" + b"\xff" * 8
    return data, known


def _ipv6(packet: Packet) -> Known:
    ends = packet.ends
    data = bytes((0x60, 0, 0, 0, 0, 0, packet.protocol, 0)) + ends.source + ends.destination
    known = b"\xff\xf0\x00\x00\x00\x00\xff\x00" + b"\xff" * 32
    return data, known


def _transport(packet: Packet) -> Known:
    ends = packet.ends
    if packet.protocol in {ICMP, ICMPV6}:
        return bytes(
            (8 if packet.protocol == ICMP else 128, 0, 0, 0, 0, 0, 0, 0)
        ), b"\xff\xff" + bytes(6)
    ports = struct.pack(">HH", ends.source_port or 0, ends.destination_port or 0)
    known = (b"\0\0" if ends.source_port is None else b"\xff\xff") + b"\xff\xff"
    if (
        packet.protocol == TCP
    ):  # a SYN: no acknowledgement, no urgent data; how long its header is depends on the client
        data = ports + bytes(8) + b"\x00\x02" + bytes(6)
        return data, known + bytes(4) + b"\xff" * 4 + b"\x0f\xff" + b"\0\0\0\0\xff\xff"
    if packet.protocol == UDP:
        return ports + bytes(4), known + bytes(4)
    return ports + bytes(8) + b"\x01" + bytes(3), known + b"\xff" * 4 + bytes(4) + b"\xff" + bytes(
        3
    )
