"""The expressions of a rule that read.

Headers, what the kernel and conntrack know of a packet, routes.

Pure except for what it asks of `Surroundings`. What nobody can know yet is stored as unknown.
"""

# ruff: noqa: ARG002 - all expressions are given the same
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nftproxy.path.machine import RegisterValue, exact, number, partly, unknown
from nftproxy.path.packet import ETHERNET, NF_PROTOCOL, Packet
from nftproxy.path.ruleset import ATTRIBUTES, NftBaseChain, NftRule, Ruleset, Surroundings
from nftproxy.path.state import Doubt, Event, RuleState
from nftproxy.table import expressions as nft
from nftproxy.table.expressions import Base, CtKey, FibFlag, FibResult, MetaKey, VerdictCode

RTN_LOCAL = 2
_PRESENT = 1  # NFT_EXTHDR_F_PRESENT
_MOST_MARKS = 16
"""Marks of which chance gives one, that are followed each."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Reads for rules of one base chain and the chains that it calls."""

    base: NftBaseChain
    rules: Ruleset
    around: Surroundings

    def payload(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Read a piece of a header, or write one."""
        base, offset, length = (
            integer(data[key]) for key in (nft.Payload.BASE, nft.Payload.OFFSET, nft.Payload.LENGTH)
        )
        if nft.Payload.FROM in data:
            value = state.registers.load(integer(data[nft.Payload.FROM]), length)
            if value.is_exact:
                return [replace(state, packet=state.packet.write(base, offset, value.options[0]))]
            return [state]
        header = state.packet.header(base)
        to = integer(data[nft.Payload.TO])
        if header is None and base == Base.INNER:
            return [store(state, to, unknown(length, "what the packet carries"))]
        if header is None or (base == Base.NETWORK and offset >= len(header[0])):
            return [broken(state)]
        content, known = header
        if offset + length > len(content):
            return [store(state, to, unknown(length, "what the packet carries"))]
        piece = partly(
            content[offset : offset + length],
            known[offset : offset + length],
            _field(base, offset, state.packet),
        )
        return [store(state, to, piece)]

    def meta(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Read what the kernel knows of a packet, or change its mark."""
        key = integer(data[nft.MetaExpression.KEY])
        if nft.MetaExpression.FROM in data:
            if key != MetaKey.MARK:
                return [state]
            value = state.registers.load(integer(data[nft.MetaExpression.FROM]), 4)
            events = (*state.events, Event("mark", rule))
            return [
                replace(
                    state,
                    packet=state.packet.marked(mark),
                    events=events,
                    doubts=(*state.doubts, *doubts),
                )
                for mark, doubts in _marks(value, rule)
            ]
        value_or_none = self._meta(key, state.packet)
        return [
            broken(state)
            if value_or_none is None
            else store(state, integer(data[nft.MetaExpression.TO]), value_or_none)
        ]

    def _meta(self, key: int, packet: Packet) -> RegisterValue | None:  # noqa: C901, PLR0912 - one case for each key
        match key:
            case MetaKey.PROTOCOL:
                return exact(ETHERNET[packet.size])
            case MetaKey.NF_PROTOCOL:
                return number(NF_PROTOCOL[packet.size], 1)
            case MetaKey.L4_PROTOCOL:
                return number(packet.protocol, 1)
            case MetaKey.MARK:
                return (
                    unknown(4, "the mark of the packet")
                    if packet.mark is None
                    else number(packet.mark)
                )
            case MetaKey.IIF_NAME | MetaKey.OIF_NAME:
                return exact(self._name(key == MetaKey.IIF_NAME, packet).encode().ljust(16, b"\0"))
            case MetaKey.PACKET_TYPE:
                return (
                    number(0, 1)
                    if self.base.chain.table.family != "bridge"
                    else unknown(1, "whom the frame is for")
                )
            case MetaKey.TRACE:
                return number(0, 1)
            case MetaKey.USER | MetaKey.GROUP | MetaKey.CGROUP:
                return None if packet.iif else unknown(4, "the process that sends it")
        link = self.around.link(
            self._name(
                key in {MetaKey.IIF, MetaKey.IIF_TYPE, MetaKey.IIF_GROUP, MetaKey.IIF_KIND}, packet
            )
        )
        match key:
            case MetaKey.IIF | MetaKey.OIF:
                return number(link.index if link else 0)
            case MetaKey.IIF_TYPE | MetaKey.OIF_TYPE:
                return number(link.type, 2) if link else None
            case MetaKey.IIF_GROUP | MetaKey.OIF_GROUP:
                return number(link.group) if link else None
            case MetaKey.IIF_KIND | MetaKey.OIF_KIND:
                return exact(link.kind.encode().ljust(16, b"\0")) if link and link.kind else None
        if key in {MetaKey.BRIDGE_IIF_NAME, MetaKey.BRIDGE_OIF_NAME}:
            link = self.around.link(self._name(key == MetaKey.BRIDGE_IIF_NAME, packet))
            return exact(link.master.encode().ljust(16, b"\0")) if link and link.master else None
        return unknown(16, f"meta key {key}")

    def _name(self, incoming: bool, packet: Packet) -> str:  # noqa: FBT001 - one of two
        """Return the interface that a packet came by, or leaves by, as far as the hook knows it."""
        if incoming:
            return packet.iif if self.base.hook != "output" else ""
        return (
            packet.oif if self.base.hook in {"forward", "output", "postrouting", "egress"} else ""
        )

    def ct(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Read what conntrack knows, or change its mark."""
        key, packet = integer(data[nft.Ct.KEY]), state.packet
        if nft.Ct.FROM in data:
            if key != CtKey.MARK or packet.tracked is None:
                return [state]
            value = state.registers.load(integer(data[nft.Ct.FROM]), 4)
            return [
                replace(
                    state,
                    packet=replace(packet, tracked=replace(packet.tracked, mark=mark)),
                    doubts=(*state.doubts, *doubts),
                )
                for mark, doubts in _marks(value, rule)
            ]
        to = integer(data[nft.Ct.TO])
        if key == CtKey.STATE:
            return [store(state, to, number(packet.state))]
        found = _ct(key, data, packet)
        return [broken(state) if found is None else store(state, to, found)]

    def fib(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Ask the routes about an address."""
        flags, result = FibFlag(integer(data[nft.Fib.FLAGS])), integer(data[nft.Fib.RESULT])
        packet, to = state.packet, integer(data[nft.Fib.TO])
        address = packet.ends.source if FibFlag.SOURCE in flags else packet.ends.destination
        device = packet.iif if FibFlag.IIF in flags else packet.oif if FibFlag.OIF in flags else ""
        if result == FibResult.ADDRESS_TYPE:
            return [store(state, to, number(self.around.address_type(address, device)))]
        if FibFlag.MARK in flags and packet.mark is None:
            return [store(state, to, unknown(16, "the mark of the packet"))]
        way = self.around.way(address, packet.mark if FibFlag.MARK in flags else 0)
        if packet.iif == "lo" and self.base.hook in {"prerouting", "input"}:
            way = "lo"  # what this node sends to itself is never doubted
        elif device and way != device:
            way = ""
        link = self.around.link(way) if way else None
        if FibFlag.PRESENT in flags:
            return [store(state, to, number(int(link is not None)))]
        if result == FibResult.OIF_NAME:
            return [store(state, to, exact(way.encode().ljust(16, b"\0")))]
        return [store(state, to, number(link.index if link else 0))]

    def socket(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Ask for a socket of this node: an address of somebody else has no socket here."""
        if self.around.address_type(state.packet.ends.destination, "") != RTN_LOCAL:
            return [broken(state)]
        return [
            *both(
                store(state, integer(data[nft.SocketExpression.TO]), unknown(16, "a socket")),
                Doubt("unknown", "a socket", rule),
            )
        ]

    def header(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Look for an extension header or an option.

        A first packet has no extension headers; its TCP options are not known.
        """
        if nft.Header.FROM in data or nft.Header.TO not in data:
            return [state]
        to = integer(data[nft.Header.TO])
        operation = integer(data[nft.Header.OPERATION]) if nft.Header.OPERATION in data else 0
        present = nft.Header.FLAGS in data and integer(data[nft.Header.FLAGS]) & _PRESENT
        if operation in {nft.HeaderOperation.IPV6, nft.HeaderOperation.IPV4}:
            return [store(state, to, number(0)) if present else broken(state)]
        return [store(state, to, unknown(16, "the options of the packet"))]

    def route(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Ask for what the route says, such as the segment size.

        Nothing but the packet's length depends on it.
        """
        return [
            store(state, integer(data[nft.RouteExpression.TO]), unknown(16, "what the route says"))
        ]


def both(state: RuleState, doubt: Doubt) -> list[RuleState]:
    """Return a state that goes on, and one that breaks the rule."""
    doubtful = replace(state, doubts=(*state.doubts, doubt))
    return [doubtful, broken(doubtful)]


def broken(state: RuleState) -> RuleState:
    """Return a state in which the rule did not match."""
    return replace(state, code=VerdictCode.BREAK)


def store(state: RuleState, register: int, value: RegisterValue) -> RuleState:
    """Return a state with a value in a register."""
    return replace(state, registers=state.registers.store(register, value))


def _ct(key: int, data: ATTRIBUTES, packet: Packet) -> RegisterValue | None:  # noqa: C901 - one case for each key
    """Return what conntrack knows of a new connection; None breaks the rule."""
    tracked = packet.tracked
    if tracked is None:
        return None
    reply = data.get(nft.Ct.DIRECTION, b"\0")[-1] == 1
    original, ends = tracked.original, packet.ends
    source, destination = (
        (ends.destination, original.source) if reply else (original.source, original.destination)
    )
    ports = (
        (ends.destination_port, original.source_port)
        if reply
        else (original.source_port, original.destination_port)
    )
    match key:
        case CtKey.DIRECTION:
            return number(0, 1)
        case CtKey.STATUS:
            return number(tracked.status)
        case CtKey.MARK:
            return (
                unknown(4, "the mark of the connection")
                if tracked.mark is None
                else number(tracked.mark)
            )
        case CtKey.HELPER:
            return None
        case CtKey.L3_PROTOCOL:
            return number(NF_PROTOCOL[packet.size], 1)
        case CtKey.PROTOCOL:
            return number(packet.protocol, 1)
        case CtKey.SOURCE | CtKey.SOURCE_4 | CtKey.SOURCE_6:
            return exact(source) if _fits(key, packet) else None
        case CtKey.DESTINATION | CtKey.DESTINATION_4 | CtKey.DESTINATION_6:
            return exact(destination) if _fits(key, packet) else None
        case CtKey.PROTOCOL_SOURCE | CtKey.PROTOCOL_DESTINATION:
            port = ports[key == CtKey.PROTOCOL_DESTINATION]
            return unknown(2, "the port of the client") if port is None else exact(port.to_bytes(2))
        case CtKey.LABELS:
            return number(0, 16)
        case CtKey.ZONE:
            return number(0, 2)
    return unknown(16, f"ct key {key}")


def _fits(key: int, packet: Packet) -> bool:
    if key in {CtKey.SOURCE_4, CtKey.DESTINATION_4}:
        return packet.size == 4
    return key not in {CtKey.SOURCE_6, CtKey.DESTINATION_6} or packet.size == 16


def _field(base: int, offset: int, packet: Packet) -> str:
    """Say what is not known of a header."""
    if base == Base.LINK:
        return "the Ethernet addresses"
    if base == Base.TRANSPORT:
        return (
            "the port of the client"
            if offset < 2
            else "what the client writes into the transport header"
        )
    return (
        "length, lifetime or number of the packet"
        if packet.size == 4
        else "length, lifetime or label of the packet"
    )


def _marks(value: RegisterValue, rule: NftRule) -> list[tuple[int | None, tuple[Doubt, ...]]]:
    """Return the marks that a value can be, each with the doubt about it."""
    if value.is_exact:
        return [(of_machine(value.options[0]), ())]
    if value.is_known and len(value.options) <= _MOST_MARKS:
        return [
            (of_machine(option), (Doubt("chance", value.why, rule),)) for option in value.options
        ]
    return [(None, ())]


def integer(packed: bytes) -> int:
    """Return a number in the order of the network."""
    return int.from_bytes(packed)


def of_machine(packed: bytes) -> int:
    """Return a number in the order of the machine."""
    return int.from_bytes(packed, sys.byteorder)
