"""The connections that conntrack knows to one address and port.

The kernel filters, so a full table costs no memory.
"""

import socket
import struct

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
    parts,
)

_GET = 1 << 8 | 1  # of NFNL_SUBSYS_CTNETLINK
_ORIGINAL, _REPLY, _STATUS, _FILTER = 1, 2, 3, 25
_IP, _PROTO = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_BY_DESTINATION, _BY_PROTOCOL, _BY_PORT = 1 << 1, 1 << 3, 1 << 5
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
_MOST = 1000
"""Connections that are looked at; more say nothing new."""


def entries(family: Family, protocol: str, address: str, port: int) -> list[Entry]:
    """Return the connections to an address and port.

    OSError without permission or without conntrack.
    """
    ipv4 = family is Family.IPv4
    ip = nested(_IP, attribute(2 if ipv4 else 4, pack(address)))
    proto = nested(
        _PROTO,
        attribute(_NUMBER, bytes([PROTOCOLS[protocol]]))
        + attribute(_DESTINATION_PORT, struct.pack(">H", port)),
    )
    wanted = _BY_DESTINATION | _BY_PROTOCOL | _BY_PORT
    body = struct.pack("=BBH", socket.AF_INET if ipv4 else socket.AF_INET6, 0, 0)
    body += nested(_ORIGINAL, ip + proto)
    body += nested(_FILTER, attribute(1, struct.pack("=I", wanted)))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as ask:
        ask.send(message(_GET, REQUEST | DUMP, 1, body))
        found: list[Entry] = []
        while True:
            data = ask.recv(1 << 20)
            position = 0
            while position < len(data):
                length, kind, _, _, _ = HEADER.unpack_from(data, position)
                if kind == DONE:
                    return found
                if kind == ERROR:
                    code = -struct.unpack_from("=i", data, position + 16)[0]
                    raise OSError(code, "conntrack cannot be read")
                place = position + 20, position + length
                if len(found) < _MOST and _is_wanted(data, place, pack(address), port, protocol):
                    found.append(_entry(data, place))
                position += (length + 3) & ~3


def _is_wanted(
    data: bytes, place: tuple[int, int], address: bytes, port: int, protocol: str
) -> bool:
    """Whether an entry is asked for; kernels before 5.8 do not filter."""
    ip, proto = _tuple(parts(data, place)[_ORIGINAL])
    there = int.from_bytes(proto.get(_DESTINATION_PORT, b""))
    return (
        ip.get(2 if len(address) == 4 else 4) == address
        and there == port
        and proto[_NUMBER] == bytes([PROTOCOLS[protocol]])
    )


def _tuple(packed: bytes) -> tuple[dict[int, bytes], dict[int, bytes]]:
    both = parts(packed)
    return parts(both[_IP]), parts(both[_PROTO])


def _entry(data: bytes, place: tuple[int, int]) -> Entry:
    whole = {kind: data[start:end] for kind, (start, end) in attributes(data, *place)}
    asked, _ = _tuple(whole[_ORIGINAL])
    answers, port = _tuple(whole[_REPLY])
    replied = bool(int.from_bytes(whole[_STATUS]) & _SEEN_REPLY)
    return Entry(
        text(asked.get(1) or asked[3]),
        text(answers.get(1) or answers[3]),
        int.from_bytes(port.get(_SOURCE_PORT, b"")),
        replied,
    )
