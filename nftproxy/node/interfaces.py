"""The addresses of this machine's interfaces, and their changes."""

import socket

from nftproxy.address import Address, parse_address, unpack
from nftproxy.node.dump import dump
from nftproxy.table import netlink
from nftproxy.table.netlink import InterfaceAddress

_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100


def addresses() -> list[Address]:
    """Return the addresses of all interfaces."""
    found = []
    head = netlink.ADDRESS_HEADER
    everything = head.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for body in dump(socket.NETLINK_ROUTE, netlink.GET_ADDRESSES, everything):
        if body[0] in (socket.AF_INET, socket.AF_INET6):
            parts = netlink.parts(body, (head.size, len(body)))
            if packed := parts.get(InterfaceAddress.LOCAL) or parts.get(InterfaceAddress.ADDRESS):
                found.append(parse_address(unpack(packed)))
    return found


def subscribe() -> socket.socket:
    """Return a non-blocking socket that becomes readable when an address is added or removed."""
    subscribed = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        socket.NETLINK_ROUTE,
    )
    subscribed.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    return subscribed


def drain(subscribed: socket.socket) -> None:
    """Read and drop all messages of a subscribed socket."""
    while True:
        try:
            subscribed.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: messages were lost; only the fact of a change matters
            continue
