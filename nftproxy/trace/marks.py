"""The table that marks packets for the kernel's trace, as the messages that make it. Pure.

It is one transaction, and the table has an owner: the kernel removes it with the socket that made
it, whatever ends the process. Nothing in it decides about a packet.

    before all others   the first packet of a connection to the target is marked, at most N a second
    after conntrack     what turns out to be no new connection is unmarked; the first answer to a
                        marked packet is marked
    after all others    nothing: the report of these chains shows the packet as it goes on
"""

import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nftproxy.address import Family
from nftproxy.kernel.channel import Modification
from nftproxy.routes import Frontend
from nftproxy.table import expressions as nft
from nftproxy.table import netlink, schema
from nftproxy.table.expressions import Base, CtKey, MetaKey, VerdictCode
from nftproxy.table.netlink import (
    ChainAttribute,
    Data,
    ElementAttribute,
    Elements,
    Hook,
    Message,
    RuleAttribute,
    Set,
    TableAttribute,
    attribute,
    named,
    nested,
)
from nftproxy.table.packing import shape
from nftproxy.trace.clients import Clients, compare, expression, load, number

MARK = "mark"
"""The chain whose first report about a packet says that it begins a connection."""
ANSWERS = {Family.IPv4: "answers4", Family.IPv6: "answers6"}
"""The chains whose first report about a packet says that it is an answer."""
TRACKED = {"prerouting": "tracked-prerouting", "output": "tracked-output"}
BEGAN, ANSWERED = "began", "answered"
"""Maps, with the digit of a family.

Connection to the time of its first packet and of the first answer, in nanoseconds.
"""
LAST = {"prerouting": "arrived", "output": "created", "input": "entering", "postrouting": "leaving"}
"""What packets meet last at a hook: in the end they enter a process of this node, or leave it."""

# One above the lowest: there the kernel ends the second passage of packets that a bridge has shown
# to these hooks.
_FIRST, _AFTER_CONNTRACK, _AT_LAST = 1 - (1 << 31), -199, (1 << 31) - 1
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_MAP, _TIMED, _DYNAMIC = 8, 16, 32  # NFT_SET_MAP, NFT_SET_TIMEOUT, NFT_SET_EVAL
_MOST = 65536  # connections that are remembered
_MEMORY = 10_000  # milliseconds for which they are
_ADD, _DELETE = 0, 2  # NFT_DYNSET_OP_*
_OVER = 1  # NFT_LIMIT_F_INV
_ORIGINAL = 0
_TYPES = {"4": 7, "6": 8}  # nft's numbers of ipv4_addr and ipv6_addr
_PROTOCOL, _SERVICE, _TIME = 12, 13, 43  # inet_proto, inet_service, time
_NF_PROTOCOL = {Family.IPv4: 2, Family.IPv6: 10}
_SOURCE, _DESTINATION = {"4": 12, "6": 8}, {"4": 16, "6": 24}
_SIZE = {"4": 4, "6": 16}
_TCP, _UDP, _SCTP = 6, 17, 132
_NEW = 8  # NF_CT_STATE_BIT(IP_CT_NEW)
_FIN_SYN_RST_ACK, _SYN = 0x17, 0x02
_INIT = 1  # the first chunk of a connection of SCTP
_R = 8  # NFT_REG32_00


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which connections are traced, and how many a second at most."""

    frontends: Mapping[Family, Sequence[Frontend]]
    clients: Clients
    rate: int


def changes(name: str, wanted: Wanted) -> list[Modification]:
    """Return the transaction that makes the table."""
    families = [family for family in Family if wanted.frontends.get(family)]
    made = [
        Modification(
            Message.NEW_TABLE,
            named(TableAttribute.NAME, name) + number(TableAttribute.FLAGS, netlink.OWNED),
        )
    ]
    for index, family in enumerate(families):
        made += _sets(name, family, wanted.frontends[family], 5 * index)
    bases, rules = _bases(), list(_rules(wanted, families))
    for chain in dict.fromkeys([*(place for place, _ in rules)]):
        if chain not in bases:
            made.append(_chain(name, chain))
    made += [_chain(name, chain, *place) for chain, place in bases.items()]
    made += [_rule(name, chain, content) for chain, content in rules]
    return made


def _bases() -> dict[str, tuple[str, int]]:
    found = {f"first-{hook}": (hook, _FIRST) for hook in TRACKED}
    found |= {chain: (hook, _AFTER_CONNTRACK) for hook, chain in TRACKED.items()}
    return found | {chain: (hook, _AT_LAST) for hook, chain in LAST.items()}


def _rules(wanted: Wanted, families: Iterable[Family]) -> Iterator[tuple[str, bytes]]:
    """Yield rules, each with its chain; a chain stands before the chains that jump to it."""
    yield MARK, _limit(wanted.rate) + _verdict(VerdictCode.RETURN)
    for family in families:
        key = _flow(family)
        yield (
            MARK,
            _is(family)
            + key
            + _learn(f"seen{family.digit}", _ADD)
            + _learn(f"waiting{family.digit}", _ADD)
            + _note(f"{BEGAN}{family.digit}")
            + _trace(on=True),
        )
    for family in families:
        digit = family.digit
        known = _flow(family) + _lookup(f"seen{digit}", _R)
        yield f"first{digit}", known + _verdict(VerdictCode.RETURN)
        begins = load(Base.TRANSPORT, 13, 1, 1)
        begins += _and(1, bytes([_FIN_SYN_RST_ACK])) + compare(1, bytes([_SYN]))
        yield f"first{digit}", _protocol(_TCP) + begins + _verdict(VerdictCode.GOTO, MARK)
        begins = load(Base.TRANSPORT, 12, 1, 1) + compare(1, bytes([_INIT]))
        yield f"first{digit}", _protocol(_SCTP) + begins + _verdict(VerdictCode.GOTO, MARK)
        # Whether a datagram begins a connection, conntrack alone knows, later; each is asked about
        # once.
        seen = _flow(family) + _learn(f"seen{digit}", _ADD)
        yield f"first{digit}", _protocol(_UDP) + seen + _verdict(VerdictCode.GOTO, MARK)
        waits = _original(family) + _lookup(f"waiting{digit}", _R)
        answered = _note(f"{ANSWERED}{digit}") + _learn(f"waiting{digit}", _DELETE)
        yield ANSWERS[family], waits + answered + _trace(on=True)
    for hook, chain in TRACKED.items():
        for family in families:
            match = wanted.clients.match(family)
            meant = wanted.clients.arriving if hook == "prerouting" else wanted.clients.created
            if match is not None and meant:
                to = _is(family) + _frontend(family) + _lookup(f"to{family.digit}", _R)
                yield (
                    f"first-{hook}",
                    to + match + _verdict(VerdictCode.JUMP, f"first{family.digit}"),
                )
            old = _ct(CtKey.STATE, 1) + _and(1, _machine(_NEW)) + compare(1, bytes(4))
            to = _is(family) + _protocol(_UDP) + old
            to += _frontend(family) + _lookup(f"to{family.digit}", _R)
            yield chain, to + _trace(on=False)
            answers = _ct(CtKey.DIRECTION, 1) + compare(1, b"\x01") + _is(family)
            yield chain, answers + _verdict(VerdictCode.GOTO, ANSWERS[family])


def _sets(
    table: str, family: Family, frontends: Sequence[Frontend], first: int
) -> Iterator[Modification]:
    digit = family.digit
    address, size = _TYPES[digit], _SIZE[digit]
    kind = address << 12 | _PROTOCOL << 6 | _SERVICE
    yield _set(table, f"to{digit}", first + 1, kind, size + 8)
    packing = shape(schema.SERVICES.name(family))
    assert packing is not None  # noqa: S101 - a map of every program
    elements = b"".join(
        nested(
            netlink.LIST_ITEM,
            nested(ElementAttribute.KEY, attribute(Data.VALUE, packing.key.pack(one))),
        )
        for one in frontends
    )
    head = named(Elements.TABLE, table) + named(Elements.SET, f"to{digit}")
    yield Modification(Message.NEW_ELEMENTS, head + nested(Elements.LIST, elements), netlink.CREATE)
    kind = address << 18 | _SERVICE << 12 | address << 6 | _SERVICE
    timed = struct.pack(">Q", _MEMORY)
    for index, name in enumerate(("seen", "waiting", BEGAN, ANSWERED), first + 2):
        notes = name in {BEGAN, ANSWERED}
        more = number(Set.FLAGS, _TIMED | _DYNAMIC | (_MAP if notes else 0))
        more += nested(Set.DESCRIPTION, number(1, _MOST))  # NFTA_SET_DESC_SIZE
        more += attribute(Set.TIMEOUT, timed)
        if notes:
            more += number(Set.DATA_TYPE, _TIME) + number(Set.DATA_LENGTH, 8)
        yield _set(table, f"{name}{digit}", index, kind, 2 * size + 8, more)


def _set(
    table: str, name: str, identity: int, kind: int, length: int, more: bytes = b""
) -> Modification:
    content = named(Set.TABLE, table) + named(Set.NAME, name) + number(Set.KEY_TYPE, kind)
    content += number(Set.KEY_LENGTH, length) + number(Set.ID, identity)
    return Modification(Message.NEW_SET, content + (more or number(Set.FLAGS, 0)), netlink.CREATE)


def _chain(table: str, name: str, hook: str = "", priority: int = 0) -> Modification:
    content = named(ChainAttribute.TABLE, table) + named(ChainAttribute.NAME, name)
    if hook:
        place = number(Hook.NUMBER, _HOOKS[hook])
        place += attribute(Hook.PRIORITY, priority.to_bytes(4, signed=True))
        content += nested(ChainAttribute.HOOK, place) + named(ChainAttribute.TYPE, "filter")
        content += number(ChainAttribute.POLICY, VerdictCode.ACCEPT)
    return Modification(Message.NEW_CHAIN, content, netlink.CREATE)


def _rule(table: str, chain: str, content: bytes) -> Modification:
    place = named(RuleAttribute.TABLE, table) + named(RuleAttribute.CHAIN, chain)
    flags = netlink.CREATE | netlink.APPEND
    return Modification(Message.NEW_RULE, place + nested(RuleAttribute.EXPRESSIONS, content), flags)


# ---- expressions ----


def _is(family: Family) -> bytes:
    return _meta(MetaKey.NF_PROTOCOL, 1) + compare(1, bytes([_NF_PROTOCOL[family]]))


def _protocol(wanted: int) -> bytes:
    return _meta(MetaKey.L4_PROTOCOL, 1) + compare(1, bytes([wanted]))


def _frontend(family: Family) -> bytes:
    """Read whom a packet asks for: address, protocol, port."""
    size = _SIZE[family.digit]
    protocol = _R + size // 4
    return (
        load(Base.NETWORK, _DESTINATION[family.digit], size, _R)
        + _meta(MetaKey.L4_PROTOCOL, protocol)
        + load(Base.TRANSPORT, 2, 2, protocol + 1)
    )


def _flow(family: Family) -> bytes:
    """Read which connection a packet belongs to."""
    digit = family.digit
    words = _SIZE[digit] // 4
    return (
        load(Base.NETWORK, _SOURCE[digit], _SIZE[digit], _R)
        + load(Base.TRANSPORT, 0, 2, _R + words)
        + load(Base.NETWORK, _DESTINATION[digit], _SIZE[digit], _R + words + 1)
        + load(Base.TRANSPORT, 2, 2, _R + 2 * words + 1)
    )


def _original(family: Family) -> bytes:
    """Read the same of the connection that a packet answers."""
    four = family is Family.IPv4
    words = _SIZE[family.digit] // 4
    source = CtKey.SOURCE_4 if four else CtKey.SOURCE_6
    destination = CtKey.DESTINATION_4 if four else CtKey.DESTINATION_6
    return (
        _ct(source, _R, directed=True)
        + _ct(CtKey.PROTOCOL_SOURCE, _R + words, directed=True)
        + _ct(destination, _R + words + 1, directed=True)
        + _ct(CtKey.PROTOCOL_DESTINATION, _R + 2 * words + 1, directed=True)
    )


def _meta(key: int, register: int) -> bytes:
    return expression(
        "meta", number(nft.MetaExpression.KEY, key) + number(nft.MetaExpression.TO, register)
    )


def _ct(key: int, register: int, *, directed: bool = False) -> bytes:
    direction = attribute(nft.Ct.DIRECTION, bytes([_ORIGINAL])) if directed else b""
    return expression("ct", number(nft.Ct.KEY, key) + number(nft.Ct.TO, register) + direction)


def _and(register: int, mask: bytes) -> bytes:
    return expression(
        "bitwise",
        number(nft.Bitwise.FROM, register)
        + number(nft.Bitwise.TO, register)
        + number(nft.Bitwise.LENGTH, len(mask))
        + nested(nft.Bitwise.MASK, attribute(Data.VALUE, mask))
        + nested(nft.Bitwise.XOR, attribute(Data.VALUE, bytes(len(mask)))),
    )


def _machine(value: int) -> bytes:
    return struct.pack("=I", value)


def _lookup(name: str, register: int) -> bytes:
    return expression(
        "lookup",
        named(nft.LookupExpression.SET, name) + number(nft.LookupExpression.FROM, register),
    )


def _learn(name: str, operation: int) -> bytes:
    content = named(nft.Dynamic.SET, name) + number(nft.Dynamic.OPERATION, operation)
    return expression("dynset", content + number(nft.Dynamic.KEY, _R))


def _note(name: str) -> bytes:
    """Note when it was; the clock of the kernel, not of whoever reads the reports."""
    content = named(nft.Dynamic.SET, name) + number(nft.Dynamic.OPERATION, _ADD)
    content += number(nft.Dynamic.KEY, _R) + number(nft.Dynamic.VALUE, _R + 12)
    return _meta(MetaKey.TIME, _R + 12) + expression("dynset", content)


def _limit(rate: int) -> bytes:
    """Match what is above a rate."""
    long = struct.Struct(">Q").pack
    content = attribute(nft.Limit.RATE, long(rate)) + attribute(nft.Limit.UNIT, long(1))
    content += number(3, rate) + number(4, 0) + number(5, _OVER)  # burst, packets, flags
    return expression("limit", content)


def _verdict(code: int, chain: str = "") -> bytes:
    content = attribute(netlink.VerdictAttribute.CODE, code.to_bytes(4, signed=True))
    if chain:
        content += named(netlink.VerdictAttribute.CHAIN, chain)
    data = nested(nft.Immediate.DATA, nested(Data.VERDICT, content))
    return expression("immediate", number(nft.Immediate.TO, 0) + data)


def _trace(*, on: bool) -> bytes:
    value = nested(nft.Immediate.DATA, attribute(Data.VALUE, bytes([on])))
    setting = number(nft.MetaExpression.KEY, MetaKey.TRACE) + number(nft.MetaExpression.FROM, 1)
    return expression("immediate", number(nft.Immediate.TO, 1) + value) + expression(
        "meta", setting
    )


def key(source: bytes, source_port: int, destination: bytes, destination_port: int) -> bytes:
    """Return the key of a connection."""
    ports = (port.to_bytes(2) + bytes(2) for port in (source_port, destination_port))
    return source + next(ports) + destination + next(ports)


def request(table: str, name: str, key: bytes) -> bytes:
    """Return what asks for one element."""
    element = nested(netlink.LIST_ITEM, nested(ElementAttribute.KEY, attribute(Data.VALUE, key)))
    head = named(Elements.TABLE, table) + named(Elements.SET, name)
    return head + nested(Elements.LIST, element)


def noted(answer: bytes) -> int:
    """Return the nanoseconds in an answer; 0 if it has no time."""
    items = netlink.parts(answer[4:]).get(Elements.LIST, b"")
    for _, place in netlink.attributes(items):
        data = netlink.parts(netlink.parts(items, place).get(ElementAttribute.DATA, b""))
        return int.from_bytes(data.get(Data.VALUE, b""), sys.byteorder)
    return 0
