"""What the headers of a packet say, from the bytes that the kernel hands out. Pure."""

import socket
import struct
from typing import NamedTuple

from nftproxy.address import Family

_TCP = socket.IPPROTO_TCP
_WITH_PORTS = {_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP}
_ICMP = {socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6}
_SYN, _RST, _ACK = 0x02, 0x04, 0x10


class PacketEnd(NamedTuple):
    """An address, packed, and a port; 0 where the protocol has none."""

    address: bytes
    port: int

    @property
    def family(self) -> Family:
        """Its family."""
        return Family.IPv4 if len(self.address) == 4 else Family.IPv6


class PacketHeader(NamedTuple):
    """What the headers of a packet say; of ICMP type and code, of TCP the flags."""

    protocol: int
    source: PacketEnd
    destination: PacketEnd
    flags: int = 0
    icmp: tuple[int, int] = (0, 0)

    @property
    def family(self) -> Family:
        """Its family."""
        return self.source.family

    @property
    def is_error(self) -> bool:
        """Whether it reports an error about another packet."""
        return self.protocol in _ICMP

    @property
    def is_reset(self) -> bool:
        """Whether it refuses a connection of TCP."""
        return self.protocol == _TCP and bool(self.flags & _RST)

    @property
    def answers(self) -> bool:
        """Whether it can be the first answer of an endpoint."""
        return self.protocol != _TCP or (self.flags & (_SYN | _ACK)) == _SYN | _ACK

    def reversed(self) -> tuple[int, PacketEnd, PacketEnd]:
        """Return protocol and ends of a packet that goes back."""
        return self.protocol, self.destination, self.source

    def way(self) -> tuple[int, PacketEnd, PacketEnd]:
        """Return protocol and ends."""
        return self.protocol, self.source, self.destination


def header_of(network: bytes, transport: bytes) -> PacketHeader | None:
    """Return what headers say; None where they are cut off or of no known family."""
    version = network[0] >> 4
    if version == 4 and len(network) >= 20:
        protocol, source, destination = network[9], network[12:16], network[16:20]
    elif version == 6 and len(network) >= 40:
        protocol, source, destination = network[6], network[8:24], network[24:40]
    else:
        return None
    ports = (0, 0)
    flags, icmp = 0, (0, 0)
    if protocol in _WITH_PORTS and len(transport) >= 4:
        ports = struct.unpack_from(">HH", transport)
        flags = transport[13] if protocol == _TCP and len(transport) > 13 else 0
    elif protocol in _ICMP and len(transport) >= 2:
        icmp = transport[0], transport[1]
    return PacketHeader(
        protocol, PacketEnd(source, ports[0]), PacketEnd(destination, ports[1]), flags, icmp
    )


def packet_of(data: bytes) -> PacketHeader | None:
    """Return what a whole packet says."""
    if not data:
        return None
    if data[0] >> 4 == 4:
        start = (data[0] & 0xF) * 4
        return header_of(data[:20], data[start:])
    return header_of(data[:40], data[40:])
