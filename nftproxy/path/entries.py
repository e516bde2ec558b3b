"""Conntrack entries to one address and port.

The kernel filters, so a table of any size costs little.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Final

from nftproxy.address import Family, pack
from nftproxy.path.packet import PROTOCOLS, text
from nftproxy.path.view import Entry
from nftproxy.table.netlink import (
    DONE,
    DUMP,
    ERROR,
    HEADER,
    NETFILTER,
    REQUEST,
    attribute,
    attributes,
    message,
    nested,
)

_GET: Final = 1 << 8 | 1  # of NFNL_SUBSYS_CTNETLINK
_ORIGINAL, _REPLY, _STATUS, _FILTER = 1, 2, 3, 25  # CTA_*
_IP, _PROTO = 1, 2  # CTA_TUPLE_*
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
_BY: Final = 1 << 1 | 1 << 3 | 1 << 5  # destination address, protocol, destination port
_SEEN_REPLY: Final = 1 << 1  # IPS_SEEN_REPLY
_MOST: Final = 1000
_AF: Final = {Family.IPv4: socket.AF_INET, Family.IPv6: socket.AF_INET6}

Parts = dict[int, bytes]


def entries(family: Family, protocol: str, address: str, port: int) -> list[Entry]:
    """Return at most 1000 connections to an address and port; OSError if they cannot be read."""
    destination = 2 if family is Family.IPv4 else 4
    wanted = nested(
        _ORIGINAL,
        nested(_IP, attribute(destination, pack(address)))
        + nested(
            _PROTO,
            attribute(_NUMBER, bytes([PROTOCOLS[protocol]]))
            + attribute(_DESTINATION_PORT, port.to_bytes(2)),
        ),
    )
    flags = nested(_FILTER, attribute(1, struct.pack("=I", _BY)))
    head = struct.pack("=BBH", _AF[family], 0, 0)
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)) as sock:
        sock.send(message(_GET, REQUEST | DUMP, 1, head + wanted + flags))
        found: list[Entry] = []
        for data in _messages(sock):
            entry = _entry(data, family)
            if len(found) < _MOST:
                found.append(entry)
    return found


def _messages(sock: socket.socket) -> Iterator[bytes]:
    while True:
        data = sock.recv(1 << 20)
        position = 0
        while position < len(data):
            length, kind, _, _, _ = HEADER.unpack_from(data, position)
            if kind in {ERROR, DONE}:
                code = -struct.unpack_from("=i", data, position + 16)[0] if length >= 20 else 0
                if code:
                    raise OSError(code, "conntrack")
                return
            yield data[position + 20 : position + length]
            position += (length + 3) & ~3


def _entry(data: bytes, family: Family) -> Entry:
    whole = _parts(data)
    source = 1 if family is Family.IPv4 else 3
    original, reply = (_parts(whole[each]) for each in (_ORIGINAL, _REPLY))
    status = int.from_bytes(whole.get(_STATUS, b""))
    return Entry(
        text(_parts(original[_IP])[source]),
        text(_parts(reply[_IP])[source]),
        int.from_bytes(_parts(reply[_PROTO]).get(_SOURCE_PORT, b"")),
        bool(status & _SEEN_REPLY),
    )


def _parts(data: bytes) -> Parts:
    return {kind: data[start:end] for kind, (start, end) in attributes(data)}
