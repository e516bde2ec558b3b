"""What the kernel reports of a marked packet, taken apart. Pure.

One report for each rule that matched, each return and each policy, in the order in which they
happened. The first report of a base chain has the packet as it was there.
"""

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from nftproxy.address import Family
from nftproxy.path.packet import ICMP, ICMPV6, SCTP, TCP, UDP
from nftproxy.table import netlink
from nftproxy.table.expressions import VerdictCode
from nftproxy.table.netlink import FAMILY_NAMES, Message, Trace
from nftproxy.table.netlink import VerdictAttribute as Part

POLICY, RETURN, RULE = 1, 2, 3
_ENDS = {VerdictCode.DROP, VerdictCode.ACCEPT, VerdictCode.STOLEN, VerdictCode.QUEUE}
_WITH_PORTS = {TCP, UDP, SCTP}
_SYN, _RST, _ACK = 0x02, 0x04, 0x10


class TraceEnd(NamedTuple):
    """An address, packed, and a port."""

    address: bytes
    port: int


class TraceHeader(NamedTuple):
    """What the headers of a packet say; of ICMP type and code, of TCP the flags."""

    protocol: int
    source: TraceEnd
    destination: TraceEnd
    flags: int = 0
    icmp: tuple[int, int] = (0, 0)

    @property
    def family(self) -> Family:
        """Its family."""
        return Family.IPv4 if len(self.source.address) == 4 else Family.IPv6

    @property
    def is_error(self) -> bool:
        """Whether it reports an error about another packet."""
        return self.protocol in {ICMP, ICMPV6}

    @property
    def is_reset(self) -> bool:
        """Whether it refuses a connection of TCP."""
        return self.protocol == TCP and bool(self.flags & _RST)

    @property
    def answers(self) -> bool:
        """Whether it can be the first answer of an endpoint."""
        return self.protocol != TCP or (self.flags & (_SYN | _ACK)) == _SYN | _ACK

    def reversed(self) -> tuple[int, TraceEnd, TraceEnd]:
        """Return protocol and ends of a packet that goes back."""
        return self.protocol, self.destination, self.source

    def way(self) -> tuple[int, TraceEnd, TraceEnd]:
        """Return protocol and ends."""
        return self.protocol, self.source, self.destination


class TraceEvent(NamedTuple):
    """One report; without a packet where an earlier one has it."""

    identity: int
    family: str
    table: str
    chain: str
    kind: int
    rule: int  # its handle; 0 for a policy
    verdict: int
    target: str = ""  # of a jump
    header: TraceHeader | None = None
    iif: int = 0
    oif: int = 0


@dataclass(slots=True)
class TraceVisit:
    """A base chain that a packet met, with all reports about it."""

    events: list[TraceEvent] = field(default_factory=list)

    @property
    def first(self) -> TraceEvent:
        """The report that names the base chain and has the packet."""
        return self.events[0]

    @property
    def last(self) -> TraceEvent:
        """The report that decides."""
        return self.events[-1]

    @property
    def header(self) -> TraceHeader | None:
        """The packet as it was at its beginning."""
        return self.first.header

    @property
    def ended(self) -> bool:
        """Whether the chain has decided."""
        return self.last.kind == POLICY or (self.last.kind == RULE and self.last.verdict in _ENDS)

    @property
    def stopped(self) -> bool:
        """Whether the packet did not get past it."""
        return self.ended and self.last.verdict == VerdictCode.DROP


def event_of(message: bytes) -> TraceEvent | None:
    """Return the report in a message, from its header on; None for other messages."""
    if len(message) < 20 or message[4] != Message.TRACE or message[5] != netlink.NFTABLES:
        return None
    parts = netlink.parts(message, (20, len(message)))
    if Trace.ID not in parts or Trace.TYPE not in parts or Trace.CHAIN not in parts:
        return None
    kind = int.from_bytes(parts[Trace.TYPE])
    if kind == POLICY:
        verdict, target = int.from_bytes(parts.get(Trace.POLICY, b"\1")), ""
    else:
        said = netlink.parts(parts.get(Trace.VERDICT, b""))
        verdict = int.from_bytes(said.get(Part.CODE, b"\0"), signed=True)
        target = netlink.text(said.get(Part.CHAIN, b""))
    network = parts.get(Trace.NETWORK_HEADER, b"")
    return TraceEvent(
        int.from_bytes(parts[Trace.ID]),
        FAMILY_NAMES.get(message[16], str(message[16])),
        netlink.text(parts.get(Trace.TABLE, b"")),
        netlink.text(parts[Trace.CHAIN]),
        kind,
        int.from_bytes(parts.get(Trace.RULE, b"")),
        verdict,
        target,
        header_of(network, parts.get(Trace.TRANSPORT_HEADER, b"")) if network else None,
        int.from_bytes(parts.get(Trace.IIF, b"")),
        int.from_bytes(parts.get(Trace.OIF, b"")),
    )


def header_of(network: bytes, transport: bytes) -> TraceHeader | None:
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
        flags = transport[13] if protocol == TCP and len(transport) > 13 else 0
    elif protocol in {ICMP, ICMPV6} and len(transport) >= 2:
        icmp = transport[0], transport[1]
    return TraceHeader(
        protocol, TraceEnd(source, ports[0]), TraceEnd(destination, ports[1]), flags, icmp
    )


def packet_of(data: bytes) -> TraceHeader | None:
    """Return what a whole packet says."""
    if not data:
        return None
    if data[0] >> 4 == 4:
        start = (data[0] & 0xF) * 4
        return header_of(data[:20], data[start:])
    return header_of(data[:40], data[40:])
