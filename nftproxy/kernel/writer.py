"""Writes straight through netlink, while libnftables must not be called.

A change of elements is one transaction with the same result in the kernel as the same change sent
as JSON. Chains can only be copied (`copies`); rules and sets are text, which libnftables alone
understands.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

from nftproxy.address import Network, pack
from nftproxy.kernel.channel import Channel, Modification
from nftproxy.routes import Key, Value, Verdict
from nftproxy.table import netlink
from nftproxy.table.netlink import (
    FAMILIES,
    Data,
    ElementAttribute,
    Elements,
    Message,
    RuleAttribute,
    attribute,
    named,
    nested,
)
from nftproxy.table.packing import SetShape, comment, shape, verdict

_TABLE = "nftproxy"
_LONGEST = 60_000  # bytes of elements in one message; the length of an attribute has 16 bits
# The mark of libnftables for an interval without an end
_OPEN = attribute(ElementAttribute.USER_DATA, struct.pack("=BBI", 1, 4, 1))
_ENDS = attribute(ElementAttribute.FLAGS, netlink.ENDS_INTERVAL.to_bytes(4))


class Writer:
    """Writes to our table; not for two threads at the same time."""

    def __init__(self, channel: Channel, written: Callable[[], None]) -> None:
        """`written` is called after each transaction."""
        self._channel = channel
        self._written = written

    def change(
        self, removed: Mapping[str, Iterable[Key]], added: Mapping[str, Mapping[Key, Value]]
    ) -> None:
        """Delete and add elements, in this order."""
        changes: list[Modification] = []
        for where, keys in removed.items():
            known = _shape(where)
            changes += _changes(
                Message.DELETE_ELEMENTS, where, (_element(known, key, None) for key in keys)
            )
        for where, items in added.items():
            known = _shape(where)
            changes += _changes(
                Message.NEW_ELEMENTS, where, (_element(known, *item) for item in items.items())
            )
        self._transact(changes)

    def forget(self, where: str, entries: Mapping[Key, Value]) -> None:
        """Delete entries that the kernel learnt.

        Each is added first, because one that has just expired could not be deleted.
        """
        known = _shape(where)
        there = [_element(known, *item) for item in entries.items()]
        gone = [_element(known, key, None) for key in entries]
        self._transact(
            [
                *_changes(Message.NEW_ELEMENTS, where, there),
                *_changes(Message.DELETE_ELEMENTS, where, gone),
            ]
        )

    def remember(self, where: str, entries: Mapping[Key, Value], timeout: int) -> None:
        """Add entries that end after some seconds."""
        known = _shape(where)
        ends = attribute(ElementAttribute.TIMEOUT, (timeout * 1000).to_bytes(8))
        packed = [_element(known, *item, more=ends) for item in entries.items()]
        self._transact([*_changes(Message.NEW_ELEMENTS, where, packed)])

    def replace(self, where: str, elements: Iterable[str | Network]) -> None:
        """Replace the addresses of a set, or the networks of an interval set."""
        flush = Modification(
            Message.DELETE_ELEMENTS, named(Elements.TABLE, _TABLE) + named(Elements.SET, where)
        )
        listed = list(elements)
        networks = [each for each in listed if isinstance(each, Network)]
        packed = list(_intervals(networks))
        packed += [
            _element(_shape(where), (each,), None) for each in listed if isinstance(each, str)
        ]
        self._transact([flush, *_changes(Message.NEW_ELEMENTS, where, packed)])

    def add_chains(self, chains: Mapping[str, Iterable[bytes]]) -> None:
        """Make chains from the expressions of their rules, in one transaction."""
        head = named(netlink.ChainAttribute.TABLE, _TABLE)
        changes = [
            Modification(
                Message.NEW_CHAIN, head + named(netlink.ChainAttribute.NAME, name), netlink.CREATE
            )
            for name in chains
        ]
        for name, rules in chains.items():
            place = named(RuleAttribute.TABLE, _TABLE) + named(RuleAttribute.CHAIN, name)
            changes += [
                Modification(
                    Message.NEW_RULE,
                    place + nested(RuleAttribute.EXPRESSIONS, rule),
                    netlink.CREATE | netlink.APPEND,
                )
                for rule in rules
            ]
        self._transact(changes)

    def delete_table(self, family: str, name: str) -> None:
        """Remove a table with all its content."""
        self._transact(
            [
                Modification(
                    Message.DELETE_TABLE,
                    named(netlink.TableAttribute.NAME, name),
                    family=FAMILIES[family],
                )
            ]
        )

    def probe(self) -> None:
        """Commit a transaction that changes nothing."""
        self._transact(
            [
                Modification(
                    Message.NEW_TABLE, named(netlink.TableAttribute.NAME, _TABLE), netlink.CREATE
                )
            ]
        )

    def _transact(self, changes: list[Modification]) -> None:
        self._channel.transact(changes)
        self._written()


def _changes(kind: Message, where: str, elements: Iterable[bytes]) -> Iterator[Modification]:
    """Yield the messages with the elements of one set."""
    head = named(Elements.TABLE, _TABLE) + named(Elements.SET, where)
    flags = netlink.CREATE if kind is Message.NEW_ELEMENTS else 0
    part: list[bytes] = []
    size = 0
    for element in elements:
        if size + len(element) > _LONGEST:
            yield Modification(kind, head + nested(Elements.LIST, b"".join(part)), flags)
            part, size = [], 0
        part.append(element)
        size += len(element)
    if part:
        yield Modification(kind, head + nested(Elements.LIST, b"".join(part)), flags)


def _element(known: SetShape, key: Key, value: Value, more: bytes = b"") -> bytes:
    """Return an element; a key alone for one of a set, or to delete."""
    packed = _keyed(known.key.pack(key)) + more
    if value is None:
        return nested(netlink.LIST_ITEM, packed)
    if known.value is not None:
        data = attribute(
            Data.VALUE, known.value.pack((value,) if isinstance(value, str) else value)
        )
        return nested(netlink.LIST_ITEM, packed + nested(ElementAttribute.DATA, data))
    assert isinstance(value, Verdict)  # noqa: S101 - maps without fields hold verdicts
    packed += nested(ElementAttribute.DATA, nested(Data.VERDICT, verdict(value.verb, value.target)))
    if value.comment:
        packed += attribute(ElementAttribute.USER_DATA, comment(value.comment))
    return nested(netlink.LIST_ITEM, packed)


def _intervals(networks: Iterable[Network]) -> Iterator[bytes]:
    """Yield the edges of networks of one family that do not overlap.

    These are the first address of each, and the first one after it.
    """
    networks = list(networks)
    if not networks:
        return
    family = networks[0].family
    size, beyond = family.bits // 8, 1 << family.bits
    edges: list[tuple[int, bytes]] = []
    for start, length in sorted(
        (int.from_bytes(pack(network.text)), network.length) for network in networks
    ):
        end = start + (1 << (family.bits - length))
        if not edges and start:
            edges.append((0, _ENDS))  # as libnftables writes it
        edges.append((start, b"" if end < beyond else _OPEN))
        if end < beyond:
            edges.append((end, _ENDS))
    for edge, mark in edges:
        yield nested(netlink.LIST_ITEM, _keyed(edge.to_bytes(size)) + mark)


def _keyed(packed: bytes) -> bytes:
    return nested(ElementAttribute.KEY, attribute(Data.VALUE, packed))


def _shape(where: str) -> SetShape:
    found = shape(where)
    assert found is not None, where  # noqa: S101 - the compiler names no others
    return found
