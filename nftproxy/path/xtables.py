"""Matches and targets of xtables, which iptables-nft puts into rules as they are.

The ones that decide about packets most often.

Pure. `match` and `target` return None for those that are not known here.
"""

import struct
from dataclasses import dataclass, replace

from nftproxy.path.packet import ICMP, ICMPV6, TCP, CtState, CtStatus, Packet
from nftproxy.path.ruleset import Surroundings
from nftproxy.table.expressions import VerdictCode

CHANCE = {"statistic"}
LIMITS = {"limit", "hashlimit", "connlimit", "quota", "recent"}
_PASSIVE = {
    "LOG",
    "NFLOG",
    "TCPMSS",
    "CHECKSUM",
    "CLASSIFY",
    "AUDIT",
    "TRACE",
    "DSCP",
    "TOS",
    "TTL",
    "HL",
    "IDLETIMER",
}
_STATE, _PROTO, _STATUS = 1, 2, 0x40  # XT_CONNTRACK_*
_STATES = {CtState.INVALID: 1, CtState.NEW: 8, CtState.UNTRACKED: 0x100}
_STATE_SNAT, _STATE_DNAT = 0x40, 0x80
# ORIGSRC, ORIGDST: the flag, and where the address and its mask are
_BY_ADDRESS = (
    (0x04, 0),
    (0x08, 32),
)
_MAP_IPS, _MAP_PORTS = 1, 2  # NF_NAT_RANGE_*


@dataclass(frozen=True, slots=True)
class Done:
    """What a target did."""

    packet: Packet
    code: int = VerdictCode.CONTINUE
    reject: str = ""
    destination: bool | None = None  # whether it translated the destination, or the source


def match(
    name: str, revision: int, info: bytes, packet: Packet, around: Surroundings
) -> set[bool] | None:
    """Return the answers that a match can have for a packet."""
    if name in CHANCE | LIMITS:
        return {True, False}
    match name, revision:
        case "comment", _:
            return {True}
        case (("tcp" | "udp" | "sctp"), 0):
            return _ports(name, info, packet)
        case (("icmp" | "icmp6"), 0):
            low, high = info[1], info[2]
            kind = {ICMP: 8, ICMPV6: 128}.get(packet.protocol, -1)
            return {
                (kind in {info[0]} | ({kind} if info[0] == 0xFF else set()) and low == 0 <= high)
                is not bool(info[3] & 1)
            }
        case "rt", 0:  # a first packet has no routing header
            return {False}
        case "multiport", 1:
            return _multiport(info, packet)
        case (("mark" | "connmark"), 1):
            return _marked(name, info, packet)
        case (("conntrack" | "state"), _):
            return _conntrack(name, revision, info, packet)
        case "addrtype", 1:
            return _addrtype(info, packet, around)
    return None


def meets(info: bytes, packet: Packet) -> bool:
    """Whether a packet meets the conditions at the head of a rule of iptables-legacy.

    Addresses, interfaces and protocol; a first packet is no fragment.
    """
    size = packet.size
    ends = packet.ends
    interfaces = 4 * size
    (protocol,) = struct.unpack_from("=H", info, interfaces + 64)
    flags, inverted = info[interfaces + 66 + (size == 16) :][:2]
    for address, at, bit in ((ends.source, 0, 8), (ends.destination, size, 16)):
        wanted, mask = info[at : at + size], info[at + 2 * size : at + 3 * size]
        same = all(a & m == w for a, w, m in zip(address, wanted, mask, strict=True))
        if same is bool(inverted & bit):
            return False
    for name, at, bit in ((packet.iif, 0, 1), (packet.oif, 16, 2)):
        there = interfaces + at
        wanted, mask = info[there : there + 16], info[there + 32 : there + 48]
        device = name.encode().ljust(16, b"\0")
        same = all((a ^ w) & m == 0 for a, w, m in zip(device, wanted, mask, strict=True))
        if same is bool(inverted & bit):
            return False
    if (
        protocol
        and (size == 4 or flags & 1)
        and (packet.protocol == protocol) is bool(inverted & 64)
    ):
        return False
    fragments = size == 4 and bool(flags & 1)
    return not fragments or bool(inverted & 32)


def _marked(name: str, info: bytes, packet: Packet) -> set[bool] | None:
    mark, mask, inverted = struct.unpack_from("=IIB", info)
    if name == "connmark" and packet.tracked is None:
        return {False}
    held = packet.mark if name == "mark" or packet.tracked is None else packet.tracked.mark
    return None if held is None else {(held & mask == mark) is not bool(inverted)}


def _ports(name: str, info: bytes, packet: Packet) -> set[bool] | None:
    if name == "sctp":
        return None
    source_low, source_high, low, high = struct.unpack_from("=4H", info)
    inverted = info[11] if name == "tcp" else info[8]
    ends = packet.ends
    port = ends.destination_port or 0
    answers = {(low <= port <= high) is not bool(inverted & 2)}
    if (source_low, source_high) != (0, 0xFFFF) or inverted & 1:
        if ends.source_port is None:
            return answers if answers == {False} else None
        answers = {
            all(answers)
            and (source_low <= ends.source_port <= source_high) is not bool(inverted & 1)
        }
    if name == "tcp":
        if info[8]:  # an option that must be there
            return answers if answers == {False} else None
        wanted, found = info[10], 0x02 & info[9]
        answers = {all(answers) and (found == wanted) is not bool(inverted & 4)}
    return answers


def _multiport(info: bytes, packet: Packet) -> set[bool] | None:
    kind, count, *rest = struct.unpack_from("=BB15H15BB", info)
    ports, ranges, inverted = rest[:15], rest[15:30], rest[30]
    pairs = []
    index = 0
    while index < count:
        last = index + 1 if ranges[index] else index
        pairs.append((ports[index], ports[last]))
        index = last + 1
    ends = packet.ends
    wanted = {0: (ends.source_port,), 1: (ends.destination_port,)}.get(
        kind, (ends.source_port, ends.destination_port)
    )
    found = any(port is not None and low <= port <= high for port in wanted for low, high in pairs)
    if not found and None in wanted:
        return None
    return {found is not bool(inverted)}


def _conntrack(name: str, revision: int, info: bytes, packet: Packet) -> set[bool] | None:
    if name == "state":
        (mask,) = struct.unpack_from("=I", info)
        return {bool(mask & _STATES[packet.state])}
    if revision not in {2, 3}:
        return None
    flags, inverted, states, statuses = struct.unpack_from("=4H", info, 146)
    if flags & ~(_STATE | _PROTO | _STATUS | 0x0C):
        return None
    state = _STATES[packet.state]
    status = packet.tracked.status if packet.tracked else CtStatus(0)
    state |= _STATE_SNAT if CtStatus.SOURCE_TRANSLATED in status else 0
    state |= _STATE_DNAT if CtStatus.DESTINATION_TRANSLATED in status else 0
    answers = not flags & _STATE or bool(states & state) is not bool(inverted & _STATE)
    if packet.tracked is None:
        return {bool(flags & _STATE) and answers}
    original = packet.tracked.original
    for (flag, offset), address in zip(
        _BY_ADDRESS, (original.source, original.destination), strict=True
    ):
        if flags & flag:
            wanted, mask = (
                info[offset : offset + len(address)],
                info[offset + 16 : offset + 16 + len(address)],
            )
            same = all(a & m == w & m for a, w, m in zip(address, wanted, mask, strict=True))
            answers = answers and same is not bool(inverted & flag)
    if flags & _PROTO:
        (protocol,) = struct.unpack_from("=H", info, 136)
        answers = answers and (protocol == packet.protocol) is not bool(inverted & _PROTO)
    if flags & _STATUS:
        answers = answers and bool(statuses & status) is not bool(inverted & _STATUS)
    return {answers}


def _addrtype(info: bytes, packet: Packet, around: Surroundings) -> set[bool]:
    source, destination, flags = struct.unpack_from("=HHI", info)
    device = packet.iif if flags & 4 else packet.oif if flags & 8 else ""
    answer = True
    for types, address, inverted in (
        (source, packet.ends.source, flags & 1),
        (destination, packet.ends.destination, flags & 2),
    ):
        if types:
            answer = answer and bool(types & 1 << around.address_type(address, device)) is not bool(
                inverted
            )
    return {answer}


def target(
    name: str, revision: int, info: bytes, packet: Packet, around: Surroundings, hook: str
) -> Done | None:
    """Return what a target does to a packet."""
    if name in _PASSIVE:
        return Done(packet)
    match name, revision:
        case "REJECT", 0:
            (kind,) = struct.unpack_from("=I", info)
            # IPT_TCP_RESET, IP6T_TCP_RESET
            reset = kind == (7 if packet.size == 4 else 6) and packet.protocol == TCP
            return Done(packet, VerdictCode.DROP, "TCP reset" if reset else "ICMP unreachable")
        case "MARK", 2:
            mark, mask = struct.unpack_from("=II", info)
            return Done(packet.marked(None if packet.mark is None else packet.mark & ~mask ^ mark))
        case "CONNMARK", _:
            return _connmark(revision, info, packet)
        case "CT", _:
            return (
                Done(replace(packet, untracked=True, tracked=None))
                if info[:2] == b"\x01\x00"
                else Done(packet)
            )
        case "NOTRACK", _:
            return Done(replace(packet, untracked=True, tracked=None))
        case (("DNAT" | "SNAT"), _):
            return _nat(name, revision, info, packet)
        case "MASQUERADE", _:
            address = around.address_of(packet.oif, packet.size)
            after = packet.translated(destination=False, address=address, port=None)
            return Done(after, VerdictCode.ACCEPT, destination=False)
        case "REDIRECT", 0:
            loopback = bytes((127, 0, 0, 1)) if packet.size == 4 else bytes(15) + b"\x01"
            address = loopback if hook == "output" else around.address_of(packet.iif, packet.size)
            of_flags, of_port = (4, 16) if packet.size == 4 else (0, 36)
            (flags,) = struct.unpack_from("=I", info, of_flags)
            (port,) = struct.unpack_from(">H", info, of_port)
            after = packet.translated(
                destination=True, address=address, port=port if flags & _MAP_PORTS else None
            )
            return Done(after, VerdictCode.ACCEPT, destination=True)
    return None


def _connmark(revision: int, info: bytes, packet: Packet) -> Done | None:
    mark, mask, other = struct.unpack_from("=III", info)
    mode, shifted = (info[14], info[13]) if revision >= 2 else (info[12], 0)
    if shifted:
        return None
    if packet.tracked is None:
        return Done(packet)
    held = packet.tracked.mark
    if mode == 2:  # restore
        value = None if packet.mark is None or held is None else packet.mark & ~other ^ held & mask
        return Done(packet.marked(value))
    if mode == 0:  # set
        value = None if held is None else held & ~mask ^ mark
    else:  # save
        value = None if packet.mark is None or held is None else held & ~mask ^ packet.mark & other
    return Done(replace(packet, tracked=replace(packet.tracked, mark=value)))


def _nat(name: str, revision: int, info: bytes, packet: Packet) -> Done | None:
    """Take addresses and ports from a range of which only the first is used."""
    if revision < 2 and packet.size == 4 and len(info) >= 20:  # nf_nat_ipv4_multi_range_compat
        _, flags, address, _, port, _ = struct.unpack_from("=II4s4s2s2s", info)
    else:  # nf_nat_range, nf_nat_range2
        flags, whole, _, port, _ = struct.unpack_from("=I16s16s2s2s", info)
        address = whole[: packet.size]
    if flags & ~0x0F:
        return None
    there = int.from_bytes(port) if flags & _MAP_PORTS else None
    after = packet.translated(
        destination=name == "DNAT", address=address if flags & _MAP_IPS else None, port=there
    )
    return Done(after, VerdictCode.ACCEPT, destination=name == "DNAT")
