"""The form of keys and values inside the kernel: fields in a row, each padded to four bytes.

Pure. The name of a set determines its family and its fields, so packing needs no look at the
kernel. Two values are equal exactly if their packed forms are, whatever a tool prints.
"""

import itertools
import socket
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

from nftproxy.address import Family, parse_address
from nftproxy.routes import Key, Value, Verdict
from nftproxy.table import netlink, schema
from nftproxy.table.netlink import attribute

PROTOCOL_NAMES = {6: "tcp", 17: "udp", 132: "sctp"}
_PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
_CODES = {"drop": 0, "accept": 1, "jump": -3, "goto": -4}
_NUMBER = struct.Struct("=I")  # of a slot
_VERBS = {code: verb for verb, code in _CODES.items()}


class SetShape(NamedTuple):
    """The shape of one set or map.

    A map without a `value` holds verdicts, a set nothing.
    """

    key: "Fields"
    value: "Fields | None"


class Fields:
    """A row of fields in one family.

    `pack` and `unpack` turn a key or an endpoint into bytes and back.
    """

    def __init__(self, fields: str, family: Family) -> None:
        """`fields` has a letter for each, as in the schema."""
        version, size = (socket.AF_INET, 4) if family is Family.IPv4 else (socket.AF_INET6, 16)
        known: dict[str, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
            "a": (f"{size}s", partial(socket.inet_pton, version), _text4 if size == 4 else _text6),
            "p": ("B3x", _PROTOCOL_NUMBERS.__getitem__, _protocol),
            "s": ("H2x", socket.htons, socket.ntohs),  # in network order
            "n": ("I", int, int),  # as numgen leaves it in a register: in the order of the machine
        }
        layout = struct.Struct("=" + "".join(known[field][0] for field in fields))
        self.pack = _packer(layout, [known[field][1] for field in fields])
        self.unpack = _unpacker(layout, [known[field][2] for field in fields])


def _packer(layout: struct.Struct, to_packed: list[Callable[[Any], Any]]) -> Callable[[Key], bytes]:
    """Return the packer of a row.

    Rows of two and three fields, of which there are hundreds of thousands, take a quarter of the
    time.
    """
    pack = layout.pack
    if len(to_packed) == 3:
        first, second, third = to_packed

        def three(values: Key) -> bytes:
            one, two, last = values
            return pack(first(one), second(two), third(last))

        return three
    if len(to_packed) == 2:
        first, second = to_packed

        def two(values: Key) -> bytes:
            one, last = values
            return pack(first(one), second(last))

        return two
    return lambda values: pack(
        *[convert(value) for convert, value in zip(to_packed, values, strict=True)]
    )


def _unpacker(
    layout: struct.Struct, from_packed: list[Callable[[Any], Any]]
) -> Callable[[bytes], Key]:
    unpack = layout.unpack
    return lambda packed: tuple(
        [convert(value) for convert, value in zip(from_packed, unpack(packed), strict=True)]
    )


@lru_cache(4096)
def shape(name: str) -> SetShape | None:
    """Return the shape of the set or map of that name.

    None for one that is not the program's, and for an interval set.
    """
    place = schema.parse(name)
    if place is None or place.declaration.interval:
        return None
    value = place.declaration.value
    return SetShape(
        Fields(place.key, place.family),
        Fields(value, place.family) if value not in {"", schema.VERDICT} else None,
    )


def slot_keys(fields: Fields, first: Key) -> Iterator[bytes]:
    """Yield the packed keys of a list's slots, from that of slot 0 on: the number is last."""
    start = fields.pack(first)[: -_NUMBER.size]
    return (start + number for number in map(_NUMBER.pack, itertools.count()))


def pack_value(value: Value, fields: Fields | None) -> bytes:
    """Return a value as bytes for comparison.

    A verdict as its attributes and those of its comment.
    """
    if value is None:
        return b""
    if fields is not None:
        return fields.pack((value,) if isinstance(value, str) else value)
    assert isinstance(value, Verdict)  # noqa: S101 - maps without fields hold verdicts
    return verdict(value.verb, value.target) + comment(value.comment)


def unpack_value(packed: bytes, fields: Fields) -> Value:
    """Return an endpoint, or the address of a remembered one."""
    values = fields.unpack(packed)
    return values if len(values) > 1 else str(values[0])


@lru_cache(4096)
def verdict(verb: str, target: str) -> bytes:
    """Return the attributes of a verdict: its code, and its target chain."""
    packed = attribute(netlink.VerdictAttribute.CODE, struct.pack(">i", _CODES[verb]))
    return packed + netlink.named(netlink.VerdictAttribute.CHAIN, target) if target else packed


def unpack_verdict(code: bytes, target: bytes) -> Verdict:
    """Return a verdict without its comment."""
    number = int.from_bytes(code, signed=True)
    return Verdict(_VERBS.get(number, str(number)), target.rstrip(b"\0").decode(errors="replace"))


def comment(text: str) -> bytes:
    """Return a comment as user data of libnftables: type 0, length, text with its end."""
    if not text:
        return b""
    packed = text.encode() + b"\0"
    return bytes((0, len(packed))) + packed


def comment_of(packed: bytes) -> str:
    """Return the comment of a packed verdict."""
    end = len(verdict("drop", ""))
    if len(packed) > end:
        length, kind = netlink.ATTRIBUTE.unpack_from(packed, end)
        if kind & netlink.KIND == netlink.VerdictAttribute.CHAIN:
            end += (length + 3) & ~3
    return unpack_comment(packed[end:])


def unpack_comment(packed: bytes) -> str:
    """Return the comment in user data; empty if it has none."""
    return (
        packed[2 : 2 + packed[1]].rstrip(b"\0").decode(errors="replace")
        if len(packed) > 2 and packed[0] == 0
        else ""
    )


def _text4(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET, packed)


def _text6(packed: bytes) -> str:
    text = socket.inet_ntop(socket.AF_INET6, packed)
    return parse_address(text).text if "." in text else text


def _protocol(number: int) -> str:
    return PROTOCOL_NAMES.get(number, str(number))
