"""What the kernel reports of a marked packet, taken apart. Pure.

One report for each rule that matched, each return and each policy, in the order in which they
happened. The first report of a base chain has the packet as it was there.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from nftproxy.kernel.headers import PacketHeader, header_of
from nftproxy.table import netlink
from nftproxy.table.expressions import VerdictCode
from nftproxy.table.netlink import FAMILY_NAMES, Message, Trace
from nftproxy.table.netlink import VerdictAttribute as Part

POLICY, RETURN, RULE = 1, 2, 3
_ENDS = {VerdictCode.DROP, VerdictCode.ACCEPT, VerdictCode.STOLEN, VerdictCode.QUEUE}


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
    header: PacketHeader | None = None
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
    def header(self) -> PacketHeader | None:
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
