"""Reading our own table from the kernel: names, elements, counters, straight from netlink.

Elements come as the packed keys the kernel holds, so nothing here depends on how a version of libnftables prints them, on
/etc/protocols or on other programs' tables. A hundred thousand elements take about a second and no memory to speak of; listing
them through libnftables takes three, and 300 MB inside the library. Only our table is ever asked for.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nftproxy.address import Family, Network, between, collapse
from nftproxy.errors import KernelError, MissingError, UnusableError
from nftproxy.routes import Element, Key, Value, Verdict
from nftproxy.table.packing import shape, unpack_comment, unpack_value, unpack_verdict

TABLE = b"nftproxy\0"
NFPROTO_INET = 1
_FAMILIES = {"inet": NFPROTO_INET, "ip": 2, "ip6": 10, "netdev": 5, "bridge": 7}
_HOOKS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting", 5: "ingress"}
_DEVICE_HOOKS = {0: "ingress", 1: "egress"}
_GETCHAIN, _GETSET, _GETSETELEM, _GETTABLE, _GETRULE, _GETGEN = 4, 10, 13, 1, 7, 16
_BATCH_BEGIN, _BATCH_END = 16, 17
_NFT = 10 << 8  # NFNL_SUBSYS_NFTABLES
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_DUMP_INTERRUPTED = 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Counted(NamedTuple):
    """An element with the packets its counter has seen."""

    element: Element
    packets: int


class BaseChain(NamedTuple):
    """A chain on a hook; `drops`: its policy does."""

    family: str
    table: str
    name: str
    hook: str
    drops: bool


class Reader:
    """One netlink socket for reading; not for two threads at once."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)  # NETLINK_NETFILTER
        except OSError as error:
            raise UnusableError(
                f"this kernel has no netfilter netlink: {error.strerror}", hint="modprobe nfnetlink nf_tables"
            ) from error
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def table_exists(self, name: str = "nftproxy", family: str = "inet") -> bool:
        """Whether the kernel has our table, or another one; KernelError without permission or without nf_tables."""
        try:
            list(self._request(_GETTABLE, {1: name.encode() + b"\0"}, dump=False, family=_FAMILIES[family]))
        except MissingError:
            return False
        return True

    def chains(self) -> dict[str, bool]:
        """Return the names of our chains, and whether each is a base chain."""
        found = {}
        for message in self._request(_GETCHAIN, {1: TABLE}):
            parts = dict(attributes(message, 0, len(message)))
            if _bytes(message, parts[1]) == TABLE:
                found[_text(_bytes(message, parts[3]))] = 4 in parts
        return found

    def base_chains(self) -> list["BaseChain"]:
        """Return the chains of all tables but ours that packets meet first; the only look at what belongs to others."""
        found = []
        for family, number in _FAMILIES.items():
            for message in self._request(_GETCHAIN, {}, family=number):
                parts = dict(attributes(message, 0, len(message)))
                if 4 in parts and _bytes(message, parts[1]) != TABLE:
                    hook = int.from_bytes(_bytes(message, dict(attributes(message, *parts[4]))[1]))
                    drops = 5 in parts and int.from_bytes(_bytes(message, parts[5])) == 0
                    table, name = _text(_bytes(message, parts[1])), _text(_bytes(message, parts[3]))
                    hooks = _DEVICE_HOOKS if family == "netdev" else _HOOKS
                    found.append(BaseChain(family, table, name, hooks.get(hook, str(hook)), drops))
        return found

    def sets(self) -> set[str]:
        """Return the names of our sets and maps, but for the anonymous ones that rules hold."""
        found = set()
        for message in self._request(_GETSET, {1: TABLE}):
            parts = dict(attributes(message, 0, len(message)))
            name = _text(_bytes(message, parts[2]))
            if _bytes(message, parts[1]) == TABLE and not name.startswith("__"):
                found.add(name)
        return found

    def rules(self) -> int:
        """Count the rules of our table."""
        return sum(1 for _ in self._request(_GETRULE, {1: TABLE}))

    def looks_up(self, name: str) -> bool:
        """Whether any rule of our table uses a set."""
        return any(name.encode() + b"\0" in message for message in self._request(_GETRULE, {1: TABLE}))

    def elements(self, name: str) -> dict[Key, Value]:
        """Return the elements of one of our sets or maps; MissingError when it is not there."""
        return {element.key: element.value for element, _ in self.counted(name)}

    def counted(self, name: str) -> Iterator[Counted]:
        """Yield the elements of a set or map with their packet counters (0 where it counts nothing)."""
        held = shape(name)
        if held is None:
            return
        for raw in self._raw(name):
            value = unpack_value(raw.data, held.value) if held.value and raw.data else raw.verdict
            yield Counted(Element(name, held.key.unpack(raw.key), value), raw.packets)

    def packed(self, name: str) -> dict[bytes, bytes]:
        """Return the elements of one of our sets or maps as `packing` packs them: a fifth of the time and memory of `elements`."""
        found: dict[bytes, bytes] = {}
        for message in self._request(_GETSETELEM, {1: TABLE, 2: name.encode() + b"\0"}):
            for kind, (start, end) in attributes(message, 0, len(message)):
                if kind == 3:
                    _take_packed(message, start, end, found)
        return found

    def count(self, name: str) -> int:
        """Count the elements of a set or map, without taking them apart."""
        total = 0
        for message in self._request(_GETSETELEM, {1: TABLE, 2: name.encode() + b"\0"}):
            lists = [place for kind, place in attributes(message, 0, len(message)) if kind == 3]
            total += sum(1 for place in lists for _ in attributes(message, *place))
        return total

    def networks(self, name: str, family: Family) -> list[Network]:
        """Return what is in an interval set, as the fewest networks that hold it."""
        edges = sorted((int.from_bytes(raw.key), not raw.ends) for raw in self._raw(name))  # where two meet, the end comes first
        found = []
        for position, (start, starts) in enumerate(edges):
            if starts:
                end = next((edge for edge, more in edges[position + 1 :] if not more), 1 << family.bits)
                found += between(start, end, family)
        return collapse(found)

    def _raw(self, name: str) -> "Iterator[_Raw]":
        """Yield the elements of a set as they are packed."""
        for message in self._request(_GETSETELEM, {1: TABLE, 2: name.encode() + b"\0"}):
            for kind, elements in attributes(message, 0, len(message)):
                if kind != 3:
                    continue
                for _, place in attributes(message, *elements):
                    yield _element(message, *place)

    def _request(
        self, kind: int, attributes: dict[int, bytes], *, dump: bool = True, family: int = NFPROTO_INET
    ) -> Iterator[bytes]:
        """Send one request and yield the payloads of its answers; a dump that a transaction touched is started again.

        The kernel marks a dump during which a transaction began, not one that began while a transaction was being committed:
        that one may miss what the transaction removes, or mix both states. Hence the generation, and waiting for its end.
        """
        body = struct.pack("=BBH", family, 0, 0)
        for number, value in attributes.items():
            body += _ATTRIBUTE.pack(4 + len(value), number) + value + bytes(-len(value) % 4)
        if not dump:
            yield from self._exchange(kind, _ACK, body)[0]
            return
        for _ in range(20):
            generation = self._generation()
            self._settle()
            answers, complete = self._exchange(kind, _DUMP, body)
            if complete and self._generation() == generation:
                yield from answers
                return
        raise KernelError("the table changes too fast to be read", hint="another program changes table inet nftproxy; find it")

    def _generation(self) -> bytes:
        """Return the number of the last transaction of this network namespace, whoever made it, and if only begun to be committed."""
        (message,), _ = self._exchange(_GETGEN, _ACK, bytes(4))
        return _bytes(message, dict(attributes(message, 0, len(message)))[1])

    def _settle(self) -> None:
        """Wait until no transaction is being committed: an empty one, which changes nothing, has to wait for it."""
        body = struct.pack(">BBH", 0, 0, _NFT >> 8)
        self._socket.send(b"".join(_HEADER.pack(20, kind, _REQUEST, 0, 0) + body for kind in (_BATCH_BEGIN, _BATCH_END)))

    def _exchange(self, kind: int, flags: int, body: bytes) -> tuple[list[bytes], bool]:
        """Send one request; return what `_receive` says."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(16 + len(body), _NFT | kind, _REQUEST | flags, self._sequence, 0) + body)
        return self._receive()

    def _receive(self) -> tuple[list[bytes], bool]:
        """Collect all answers to the last request, and whether they are one consistent picture."""
        answers: list[bytes] = []
        complete = True
        while True:
            data = self._socket.recv(1 << 20)
            position = 0
            while position < len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, position)
                payload = data[position + 16 : position + length]
                position += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                complete = complete and not flags & _DUMP_INTERRUPTED
                if kind == _NLMSG_DONE:
                    return answers, complete
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code == 0:
                        return answers, complete
                    if code == errno.EINTR:
                        return answers, False
                    hint = "run as root or with the capability NET_ADMIN" if code == errno.EPERM else ""
                    raise (MissingError if code == errno.ENOENT else KernelError)(
                        f"reading nftables: {os.strerror(code)}", hint=hint
                    )
                answers.append(payload[4:])


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
    for part, where in attributes(message, start, end):
        if part == 1:
            key = _bytes(message, next(attributes(message, *where))[1])
        elif part == 2:
            kind, inner = next(attributes(message, *where))
            if kind == 2:
                verdict = _verdict(message, *inner)
            else:
                data = _bytes(message, inner)
        elif part == 3:
            ends = bool(message[where[1] - 1] & 1)
        elif part == 6:
            comment = unpack_comment(_bytes(message, where))
        elif part == 7:
            packets = _packets(message, *where)
    if verdict is not None and comment:
        verdict = verdict._replace(comment=comment)
    return _Raw(key, data, verdict, packets, ends)


def _take_packed(message: bytes, position: int, end: int, found: dict[bytes, bytes]) -> None:
    """Take in the packed elements between two places of a message. By far the busiest loop of a restart, hence written out."""
    unpack = _ATTRIBUTE.unpack_from
    while position + 4 <= end:
        stop = position + unpack(message, position)[0]
        position += 4
        key = value = b""
        while position + 4 <= stop:
            length, kind = unpack(message, position)
            kind &= 0x3FFF
            if kind == 1:
                key = message[position + 8 : position + length]
            elif kind == 2:  # in it, a value or a verdict
                value = message[position + 8 : position + length]
            elif kind == 6:  # the comment
                value += message[position + 4 : position + length]
            position += (length + 3) & ~3
        found[key] = value
        position = (stop + 3) & ~3


def attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield number and place (from, to) of each netlink attribute between two positions."""
    unpack = _ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(data, start)
        yield kind & 0x3FFF, (start + 4, start + length)
        start += (length + 3) & ~3


def _bytes(data: bytes, place: tuple[int, int]) -> bytes:
    return data[place[0] : place[1]]


def _verdict(data: bytes, start: int, end: int) -> Verdict:
    parts = dict(attributes(data, start, end))
    return unpack_verdict(_bytes(data, parts[1]), _bytes(data, parts[2]) if 2 in parts else b"")


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _packets(data: bytes, start: int, end: int) -> int:
    """Return the packets of a counter expression."""
    expression = dict(attributes(data, start, end))
    if _bytes(data, expression[1]) != b"counter\0":
        return 0
    counter = dict(attributes(data, *expression[2]))
    return int.from_bytes(_bytes(data, counter[2]))
