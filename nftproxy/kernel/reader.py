"""Reads our own table from the kernel: names, elements, counters, straight from netlink.

Elements are the packed keys of the kernel, so nothing here depends on the output of a version of
libnftables, on /etc/protocols or on other programs' tables. 100 000 elements take about a second
and hardly any memory; listing them through libnftables takes three, and 300 MB inside the library.
Only our table is ever read, except for `base_chains`.

The kernel lists a set in pieces, each of which starts by counting what was listed. While a worker
of the kernel moves the elements of a set that has grown or shrunk, their order changes between two
pieces: some are listed twice, and as many not at all. No transaction begins then, so the kernel
does not mark such a dump. Whoever unpacks elements reads them again when one is listed twice.
Elements that expire during a dump leave no such trace; the kernel then skips as many others.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nftproxy.address import Family, Network, between, collapse
from nftproxy.errors import MissingError
from nftproxy.kernel.channel import Channel
from nftproxy.routes import Element, Key, Value, Verdict
from nftproxy.table import netlink
from nftproxy.table.netlink import (
    ATTRIBUTE,
    FAMILIES,
    ChainAttribute,
    Counter,
    Data,
    Elements,
    ExpressionAttribute,
    Hook,
    Message,
    Place,
    RuleAttribute,
    Set,
    TableAttribute,
    attributes,
    named,
    nested,
    text,
)
from nftproxy.table.netlink import ElementAttribute as Part
from nftproxy.table.netlink import VerdictAttribute as Code
from nftproxy.table.packing import shape, unpack_comment, unpack_value, unpack_verdict

TABLE = b"nftproxy\0"
READINGS = 3
"""How often a set is read at most while elements are listed twice.

The kernel moves them within some milliseconds, and the next time after as many new ones again. New
clients that come in during a dump also make it list some twice, but hide none.
"""
_KEY, _DATA, _FLAGS = int(Part.KEY), int(Part.DATA), int(Part.FLAGS)
_USER_DATA, _EXPRESSION, _VERDICT = int(Part.USER_DATA), int(Part.EXPRESSION), int(Data.VERDICT)
_HOOKS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting", 5: "ingress"}
_DEVICE_HOOKS = {0: "ingress", 1: "egress"}


class Counted(NamedTuple):
    """An element with the packets that its counter has seen."""

    element: Element
    packets: int


class HookChain(NamedTuple):
    """A chain on a hook; `drops`: by its policy."""

    family: str
    table: str
    name: str
    hook: str
    drops: bool


class Reader:
    """One netlink socket for reading; not for two threads at the same time."""

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel or Channel()

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()

    def generation(self) -> int:
        """Return the number of the last transaction, of any program."""
        return self._channel.generation()

    def table_exists(self, name: str = "nftproxy", family: str = "inet") -> bool:
        """Whether the kernel has our table, or another one.

        KernelError without permission or without nf_tables.
        """
        try:
            self._channel.get(
                Message.GET_TABLE, named(TableAttribute.NAME, name), family=FAMILIES[family]
            )
        except MissingError:
            return False
        return True

    def chains(self) -> dict[str, bool]:
        """Return the names of our chains, and whether each is a base chain."""
        found = {}
        for message in self._channel.dump(Message.GET_CHAIN, _ours(ChainAttribute.TABLE)):
            parts = netlink.parts(message)
            if parts[ChainAttribute.TABLE] == TABLE:
                found[text(parts[ChainAttribute.NAME])] = ChainAttribute.HOOK in parts
        return found

    def base_chains(self) -> list["HookChain"]:
        """Return the base chains of all tables but ours."""
        found = []
        for family in ("inet", "ip", "ip6", "netdev", "bridge"):
            for message in self._channel.dump(Message.GET_CHAIN, family=FAMILIES[family]):
                parts = netlink.parts(message)
                if ChainAttribute.HOOK in parts and parts[ChainAttribute.TABLE] != TABLE:
                    hook = int.from_bytes(netlink.parts(parts[ChainAttribute.HOOK])[Hook.NUMBER])
                    drops = (
                        ChainAttribute.POLICY in parts
                        and int.from_bytes(parts[ChainAttribute.POLICY]) == 0
                    )
                    table, name = (
                        text(parts[ChainAttribute.TABLE]),
                        text(parts[ChainAttribute.NAME]),
                    )
                    hooks = _DEVICE_HOOKS if family == "netdev" else _HOOKS
                    found.append(HookChain(family, table, name, hooks.get(hook, str(hook)), drops))
        return found

    def sets(self) -> set[str]:
        """Return the names of our sets and maps, without the anonymous ones of rules."""
        found = set()
        for message in self._channel.dump(Message.GET_SET, _ours(Set.TABLE)):
            parts = netlink.parts(message)
            name = text(parts[Set.NAME])
            if parts[Set.TABLE] == TABLE and not name.startswith("__"):
                found.add(name)
        return found

    def rules(self) -> int:
        """Count the rules of our table."""
        return sum(1 for _ in self._channel.dump(Message.GET_RULE, _ours(RuleAttribute.TABLE)))

    def expressions(self, chain: str) -> list[bytes]:
        """Return the packed expressions of each rule of one of our chains."""
        wanted = _ours(RuleAttribute.TABLE) + named(RuleAttribute.CHAIN, chain)
        return [
            netlink.parts(message).get(RuleAttribute.EXPRESSIONS, b"")
            for message in self._channel.dump(Message.GET_RULE, wanted)
        ]

    def rule_counters(self, chain: str) -> list[int]:
        """Return the packets of each counter in the rules of one of our chains, in their order.

        MissingError if the chain does not exist.
        """
        found = []
        for packed in self.expressions(chain):
            for _, place in attributes(packed):
                if _is_counter(packed, place):
                    found.append(_packets(netlink.parts(packed, place)))
        return found

    def looks_up(self, name: str) -> bool:
        """Whether any rule of our table uses a set."""
        return any(
            name.encode() + b"\0" in message
            for message in self._channel.dump(Message.GET_RULE, _ours(RuleAttribute.TABLE))
        )

    def elements(self, name: str) -> dict[Key, Value]:
        """Return the elements of one of our sets or maps; MissingError if it does not exist."""
        return {element.key: element.value for element, _ in self.counted(name)}

    def elements_of(self, names: Sequence[str]) -> dict[str, dict[Key, Value]]:
        """Return the elements of several maps without verdicts at one moment, which costs less.

        This takes a third of the time of `elements`.
        """
        requests = [_elements_of(name) for name in names]
        found: list[dict[bytes, bytes]] = []
        for _ in range(READINGS):
            answers = self._channel.dumps(Message.GET_ELEMENTS, requests)
            found, whole = [], True
            for messages in answers:
                found.append({})
                whole = _take_all(messages, found[-1]) and whole
            if whole:
                break
        return {name: _unpacked(name, packed) for name, packed in zip(names, found, strict=True)}

    def counted(self, name: str) -> Iterator[Counted]:
        """Yield the elements of a set or map with their packet counters (0 where it has none)."""
        if shape(name) is None:
            return
        messages = self.messages(name)
        for _ in range(READINGS - 1):
            if not _repeats(messages):
                break
            messages = self.messages(name)
        for message in messages:
            yield from counted_in(name, message)

    def element(self, name: str, key: Key) -> Counted | None:
        """Return one element of a set or map, with its packet counter.

        None if it does not exist.
        """
        held = shape(name)
        assert held  # noqa: S101 - an interval set has no such elements
        packed = nested(Part.KEY, netlink.attribute(Data.VALUE, held.key.pack(key)))
        wanted = _elements_of(name)
        wanted += nested(Elements.LIST, nested(netlink.LIST_ITEM, packed))
        try:
            (message, *_) = self._channel.get(Message.GET_ELEMENTS, wanted)
        except MissingError:
            return None
        items = netlink.parts(message[4:])[Elements.LIST]
        return next(_counted(name, items, place) for _, place in attributes(items))

    def messages(self, name: str) -> list[bytes]:
        """Return the messages that list a set or map, also for `counted_in`."""
        return list(self._channel.dump(Message.GET_ELEMENTS, _elements_of(name)))

    def packed(self, name: str) -> dict[bytes, bytes]:
        """Return the packed elements of one of our sets or maps, as `packing` packs them.

        This takes a fifth of the time and memory of `elements`.
        """
        found: dict[bytes, bytes] = {}
        for _ in range(READINGS):
            found = {}
            if _take_all(self.messages(name), found):
                break
        return found

    def count(self, name: str) -> int:
        """Count the elements of a set or map, without unpacking them.

        While elements move, as many are listed twice as are not, so the sum is right.
        """
        return sum(1 for message, place in self._lists(name) for _ in attributes(message, *place))

    def networks(self, name: str, family: Family) -> list[Network]:
        """Return the content of an interval set, as the fewest networks."""
        # Where two meet, the end comes first
        edges = sorted((int.from_bytes(raw.key), not raw.ends) for raw in self._raw(name))
        found = []
        for position, (start, starts) in enumerate(edges):
            if starts:
                end = next(
                    (edge for edge, more in edges[position + 1 :] if not more), 1 << family.bits
                )
                found += between(start, end, family)
        return collapse(found)

    def _raw(self, name: str) -> "Iterator[_Raw]":
        """Yield the packed elements of a set."""
        for message, elements in self._lists(name):
            for _, place in attributes(message, *elements):
                yield _element(message, *place)

    def _lists(self, name: str) -> Iterator[tuple[bytes, Place]]:
        """Yield each message with elements of a set, and their places in it."""
        for message in self._channel.dump(Message.GET_ELEMENTS, _elements_of(name)):
            for place in _lists_in(message):
                yield message, place


def counted_in(name: str, message: bytes) -> Iterator[Counted]:
    """Yield the elements in one of the messages that list a set or map."""
    for elements in _lists_in(message):
        for _, place in attributes(message, *elements):
            yield _counted(name, message, place)


def _repeats(messages: Sequence[bytes]) -> bool:
    """Whether a set is listed in these messages with some key twice.

    The key is the first part of each element.
    """
    unpack = ATTRIBUTE.unpack_from
    keys: set[bytes] = set()
    number = 0
    for message in messages:
        for position, end in _lists_in(message):
            start = position
            while start + 4 <= end:
                first = start + 4
                keys.add(message[first : first + unpack(message, first)[0]])
                number += 1
                start += (unpack(message, start)[0] + 3) & ~3
    return number > len(keys)


def _lists_in(message: bytes) -> Iterator[Place]:
    """Yield the places of elements in one of the messages that list a set."""
    return (place for kind, place in attributes(message) if kind == Elements.LIST)


def _take_all(messages: Iterable[bytes], found: dict[bytes, bytes]) -> bool:
    """Add the packed elements in messages that list a set; return whether each is listed once."""
    number = 0
    for message in messages:
        for start, end in _lists_in(message):
            number += _take_packed(message, start, end, found)
    return number == len(found)


def _unpacked(name: str, packed: dict[bytes, bytes]) -> dict[Key, Value]:
    """Return the elements of a map without verdicts, in which many have the same value."""
    held = shape(name)
    assert held  # noqa: S101 - a map of ours
    assert held.value  # noqa: S101
    key_of = held.key.unpack
    values = {value: unpack_value(value, held.value) for value in set(packed.values())}
    return {key_of(key): values[value] for key, value in packed.items()}


def _counted(name: str, message: bytes, place: Place) -> Counted:
    held = shape(name)
    assert held  # noqa: S101 - asked before
    raw = _element(message, *place)
    value = unpack_value(raw.data, held.value) if held.value and raw.data else raw.verdict
    return Counted(Element(name, held.key.unpack(raw.key), value), raw.packets)


def _ours(kind: int) -> bytes:
    """Return the attribute that names our table."""
    return netlink.attribute(kind, TABLE)


def _elements_of(name: str) -> bytes:
    """Return the attributes that name one of our sets or maps."""
    return _ours(Elements.TABLE) + named(Elements.SET, name)


class _Raw(NamedTuple):
    """An element as the kernel packs it."""

    key: bytes
    data: bytes
    verdict: Verdict | None
    packets: int
    ends: bool  # the first address after an interval


def _element(message: bytes, start: int, end: int) -> _Raw:
    key = data = b""
    verdict: Verdict | None = None
    comment = ""
    packets = 0
    ends = False
    unpack, kind_of = ATTRIBUTE.unpack_from, netlink.KIND
    while start + 4 <= end:  # written out: a picture of the table is mostly this loop
        length, part = unpack(message, start)
        part &= kind_of
        first, last = start + 4, start + length
        if part == _KEY:  # in it, a value
            key = message[first + 4 : first + unpack(message, first)[0]]
        elif part == _DATA:
            size, kind = unpack(message, first)
            if kind & kind_of == _VERDICT:
                verdict = _verdict(netlink.parts(message, (first + 4, first + size)))
            else:
                data = message[first + 4 : first + size]
        elif part == _FLAGS:
            ends = bool(message[last - 1] & netlink.ENDS_INTERVAL)
        elif part == _USER_DATA:
            comment = unpack_comment(message[first:last])
        elif part == _EXPRESSION:
            packets = _packets(netlink.parts(message, (first, last)))
        start += (length + 3) & ~3
    if verdict is not None and comment:
        verdict = verdict._replace(comment=comment)
    return _Raw(key, data, verdict, packets, ends)


def _take_packed(message: bytes, position: int, end: int, found: dict[bytes, bytes]) -> int:
    """Add the packed elements between two places of a message; return how many these are.

    This is by far the busiest loop of a restart, hence written out.
    """
    unpack = ATTRIBUTE.unpack_from
    key_part, data_part, user_data, netlink_kind = (
        int(Part.KEY),
        int(Part.DATA),
        int(Part.USER_DATA),
        netlink.KIND,
    )
    number = 0
    while position + 4 <= end:
        stop = position + unpack(message, position)[0]
        position += 4
        key = value = b""
        while position + 4 <= stop:
            length, kind = unpack(message, position)
            kind &= netlink_kind
            if kind == key_part:
                key = message[position + 8 : position + length]
            elif kind == data_part:  # in it, a value or a verdict
                value = message[position + 8 : position + length]
            elif kind == user_data:  # the comment
                value += message[position + 4 : position + length]
            position += (length + 3) & ~3
        found[key] = value
        number += 1
        position = (stop + 3) & ~3
    return number


def _bytes(data: bytes, place: tuple[int, int]) -> bytes:
    return data[place[0] : place[1]]


def _verdict(parts: dict[int, bytes]) -> Verdict:
    return unpack_verdict(parts[Code.CODE], parts.get(Code.CHAIN, b""))


def _is_counter(packed: bytes, place: Place) -> bool:
    return netlink.parts(packed, place)[ExpressionAttribute.NAME] == b"counter\0"


def _packets(expression: dict[int, bytes]) -> int:
    """Return the packets of a counter expression."""
    if expression[ExpressionAttribute.NAME] != b"counter\0":
        return 0
    return int.from_bytes(netlink.parts(expression[ExpressionAttribute.DATA])[Counter.PACKETS])
