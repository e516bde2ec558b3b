"""The connections that conntrack knows to one address and port.

The kernel filters, so a full table costs no memory.
"""

from itertools import islice

from nftproxy.address import pack, unpack
from nftproxy.node import ctdump
from nftproxy.path.packet import PROTOCOLS
from nftproxy.path.view import Entry

_MOST = 1000
"""Connections that are looked at; more say nothing new."""


def entries(protocol: str, address: str, port: int) -> list[Entry]:
    """Return the connections to an address and port.

    OSError without permission or without conntrack.
    """
    found = ctdump.to(PROTOCOLS[protocol], pack(address), port)
    return [
        Entry(
            unpack(one.client.address), unpack(one.answers.address), one.answers.port, one.replied
        )
        for one in islice(found, _MOST)
    ]
