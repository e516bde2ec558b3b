"""The addresses of this machine's interfaces, and their changes."""

import socket
from contextlib import suppress

from nftproxy.address import Address, parse_address
from nftproxy.errors import AddressError

_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100


def addresses() -> list[Address]:
    """Return the addresses of all interfaces."""
    from pyroute2 import IPRoute

    found = []
    with IPRoute() as netlink:
        for message in netlink.get_addr():
            # IFA_LOCAL is the own end of a point-to-point link; IPv6 has only IFA_ADDRESS.
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text:
                with suppress(AddressError):
                    found.append(parse_address(text))
    return found


def subscribe() -> socket.socket:
    """Return a non-blocking socket that becomes readable when an address is added or removed."""
    netlink = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        socket.NETLINK_ROUTE,
    )
    netlink.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    return netlink


def drain(netlink: socket.socket) -> None:
    """Read and drop all messages of a subscribed socket."""
    while True:
        try:
            netlink.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: messages were lost; only the fact of a change matters
            continue
