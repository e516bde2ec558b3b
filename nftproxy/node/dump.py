"""Lists that the kernel gives by netlink: addresses, IP sets.

`pyroute2` knows far more, and takes 9 MB and 0.1 s for it: a process that stays, as on each node,
asks for its two lists with this.
"""

import errno
import os
import socket
import struct
from typing import Final

from nftproxy.errors import BusyError
from nftproxy.table import netlink

_ATTEMPTS: Final = 20


def dump(protocol: int, kind: int, body: bytes) -> list[bytes]:
    """Return the body of each answer to a request for a list.

    A list that changed while it was read is read again; BusyError if it always does. OSError if
    the kernel refuses.
    """
    for _ in range(_ATTEMPTS):
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        ) as asking:
            asking.bind((0, 0))
            asking.send(netlink.message(kind, netlink.REQUEST | netlink.DUMP, 1, body))
            found, complete = _answers(asking)
            if complete:
                return found
    raise BusyError("the kernel's lists change too fast to be read", hint="try again")


def _answers(asked: socket.socket) -> tuple[list[bytes], bool]:
    """Return the bodies, and whether they are one consistent picture."""
    found: list[bytes] = []
    complete = True
    while True:
        data = asked.recv(1 << 18)
        for kind, flags, _, (start, end) in netlink.messages(data):
            complete = complete and not flags & netlink.DUMP_INTERRUPTED
            if kind == netlink.DONE:
                return found, complete
            if kind == netlink.ERROR:
                code = -struct.unpack_from("=i", data, start)[0]
                if code == errno.EINTR:
                    return found, False
                raise OSError(code, os.strerror(code))
            found.append(data[start:end])
