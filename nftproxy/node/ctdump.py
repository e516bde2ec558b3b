"""Entries of conntrack that the kernel selects: dumps, taken apart attribute by attribute."""

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nftproxy.kernel.headers import PacketEnd
from nftproxy.table.netlink import (
    DONE,
    DUMP,
    ERROR,
    NETFILTER,
    REQUEST,
    attribute,
    attributes,
    message,
    messages,
    nested,
    parts,
)

_GET = 1 << 8 | 1  # of NFNL_SUBSYS_CTNETLINK
_ORIGINAL, _REPLY, _STATUS, _FILTER, _STATUS_MASK = 1, 2, 3, 25, 26  # CTA_*
_IP, _PROTO = 1, 2
_IPV4_DESTINATION = 2  # CTA_IP_V4_DST
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_BY_DESTINATION, _BY_PROTOCOL, _BY_PORT = 1 << 1, 1 << 3, 1 << 5
_SEEN_REPLY, _TRANSLATED = 1 << 1, 1 << 5  # IPS_SEEN_REPLY, IPS_DST_NAT


class CtEntry(NamedTuple):
    """A connection: who asked whom, and who answers."""

    protocol: int
    client: PacketEnd
    asked: PacketEnd
    answers: PacketEnd
    replied: bool


def to(protocol: int, address: bytes, port: int) -> Iterator[CtEntry]:
    """Yield the connections to an address and port; kernels before 5.8 do not select.

    OSError without permission or without conntrack. In IPv6 the kernel selects by port alone: asked
    for an address, it leaves out the very one (seen in 6.18).
    """
    six = len(address) == 16
    ip = b"" if six else nested(_IP, attribute(_IPV4_DESTINATION, address))
    proto = nested(
        _PROTO,
        attribute(_NUMBER, bytes([protocol]))
        + attribute(_DESTINATION_PORT, struct.pack(">H", port)),
    )
    wanted = _BY_PROTOCOL | _BY_PORT | (0 if six else _BY_DESTINATION)
    selected = nested(_ORIGINAL, ip + proto)
    selected += nested(_FILTER, attribute(1, struct.pack("=I", wanted)))
    for data, start, end in _dump(socket.AF_INET6 if six else socket.AF_INET, selected):
        entry = _entry(parts(data, (start, end)))
        if (entry.protocol, entry.asked) == (protocol, (address, port)):
            yield entry


def unanswered(known: Mapping[bytes, CtEntry]) -> Iterator[tuple[bytes, CtEntry]]:
    """Yield the connections that were sent elsewhere, of which no answer was seen.

    Each has what identifies it; those in `known` are not taken apart again (4 us in place of 20).
    Kernels before 5.16 do not select. OSError as above.
    """
    selected = attribute(_STATUS, struct.pack(">I", _TRANSLATED))
    selected += attribute(_STATUS_MASK, struct.pack(">I", _TRANSLATED | _SEEN_REPLY))
    for data, start, end in _dump(socket.AF_UNSPEC, selected):
        both, status = start, 0
        for kind, (first, last) in attributes(data, start, end):
            if kind in {_ORIGINAL, _REPLY}:
                both = last
            elif kind == _STATUS:
                status = int.from_bytes(data[first:last])
                break
        if status & (_TRANSLATED | _SEEN_REPLY) == _TRANSLATED:
            identity = data[start:both]
            yield identity, known.get(identity) or _entry(parts(data, (start, end)))


def _dump(family: int, selected: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the place of the attributes of each entry."""
    body = struct.pack("=BBH", family, 0, 0) + selected
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as ask:
        ask.send(message(_GET, REQUEST | DUMP, 1, body))
        while True:
            data = ask.recv(1 << 20)
            for kind, _, _, (start, end) in messages(data):
                if kind == DONE:
                    return
                if kind == ERROR:
                    code = -struct.unpack_from("=i", data, start)[0]
                    raise OSError(code, os.strerror(code))
                yield data, start + 4, end


def _entry(whole: dict[int, bytes]) -> CtEntry:
    protocol, client, asked = _ends(whole[_ORIGINAL])
    _, answers, _ = _ends(whole[_REPLY])
    replied = bool(int.from_bytes(whole.get(_STATUS, b"")) & _SEEN_REPLY)
    return CtEntry(protocol, client, asked, answers, replied)


def _ends(packed: bytes) -> tuple[int, PacketEnd, PacketEnd]:
    """Return protocol, source and destination of a tuple."""
    both = parts(packed)
    ip, proto = parts(both[_IP]), parts(both[_PROTO])
    source, destination = ip.get(1) or ip[3], ip.get(2) or ip[4]
    return (
        proto[_NUMBER][0],
        PacketEnd(source, int.from_bytes(proto.get(_SOURCE_PORT, b""))),
        PacketEnd(destination, int.from_bytes(proto.get(_DESTINATION_PORT, b""))),
    )
