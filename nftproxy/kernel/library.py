"""libnftables: the only module that calls it.

Text and JSON go through one context; each call is one transaction. The library is not thread safe:
its caller holds a lock.
"""

import ctypes
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from nftproxy.errors import ExistsError, KernelError, MissingError, UnusableError


class Sender(Protocol):
    """Takes transactions as nft text or JSON.

    KernelError means that one is refused and nothing has changed.
    """

    @property
    def ports(self) -> set[int]:
        """The netlink port ids of its commits."""

    def run(self, text: str) -> None:
        """Make one transaction."""

    def close(self) -> None:
        """Close its sockets."""


class Library:
    """libnftables, in the network namespace of the thread that made this object."""

    def __init__(self) -> None:
        before = _netlink_sockets()
        self._nft = _context()
        # those of libnftables, which does not name them
        self._sockets = _netlink_sockets() - before
        for number in self._sockets:
            with suppress(OSError), socket.socket(fileno=os.dup(number)) as found:
                found.bind((0, 0))  # else it has no port id before its first command

    @property
    def ports(self) -> set[int]:
        """The netlink port ids of its commits."""
        ports = set()
        for number in self._sockets:
            with socket.socket(fileno=os.dup(number)) as found:
                ports.add(found.getsockname()[0])
        return ports

    def run(self, text: str) -> None:
        """Make one transaction; KernelError if it is refused and nothing has changed."""
        code, _, error = self._nft.cmd(text)
        if code:
            raise _error(str(error))

    def close(self) -> None:
        """Close its sockets."""
        del self._nft


def _error(text: str) -> KernelError:
    """Turn the output of libnftables into an error.

    Its first line is the reason; the rest repeats our input.
    """
    line = next(
        (line for line in text.splitlines() if line.strip()), "libnftables gave no reason"
    ).strip()
    if "No such file or directory" in text:
        return MissingError(line)
    if "File exists" in text:
        return ExistsError(line)
    if "Operation not permitted" in text:
        return KernelError(line, hint="run as root or with the capability NET_ADMIN")
    return KernelError(line)


def _netlink_sockets() -> set[int]:
    """Return the file descriptors of this process that are netlink sockets."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            number = int(entry.name)
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as each:
                    if each.family == socket.AF_NETLINK:
                        found.add(number)
    return found


def _context() -> "Nftables":  # type: ignore[name-defined]  # noqa: F821
    """Open libnftables; UnusableError names what is missing."""
    try:
        from nftables import Nftables
    except ImportError as error:
        raise UnusableError(
            "the Python module nftables is not installed", hint="pip install pip-nftables"
        ) from error
    try:
        # First: an Nftables() that cannot load it complains once more when it is collected
        ctypes.CDLL("libnftables.so.1")
        nft = Nftables()
    except OSError as error:
        raise UnusableError(
            f"libnftables cannot be loaded: {error}", hint="apt-get install libnftables1"
        ) from error
    nft.set_json_output(True)
    return nft
