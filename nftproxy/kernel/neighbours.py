"""Other programs' sets that an older libnftables does not survive.

libnftables 1.1.2 and later store with a set declared by `type` how it was declared: as a constant.
Versions before 1.1.4 call a null pointer when they read this, and they read all sets of all tables
before most commands. So there is a look before each use of the library. The number of the last
transaction shows, in microseconds, whether anybody else has changed anything since; only then all
sets are looked at, and only if one is suspicious, a child process is asked once whether this
library survives it. The library does not name its version. A child that survives shows, for good,
that no set is dangerous.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nftproxy.errors import BusyError
from nftproxy.kernel.channel import Channel
from nftproxy.table import netlink
from nftproxy.table.netlink import FAMILY_NAMES, Message, Set

# NFTNL_UDATA_SET_KEY_TYPEOF, NFTNL_UDATA_SET_DATA_TYPEOF: the expression of its declaration
_KEY, _DATA = (
    3,
    4,
)
_EXPRESSION = 0  # NFTNL_UDATA_SET_TYPEOF_EXPR
# The expressions that every libnftables reads: verdict, payload, exthdr, meta, socket, osf, ct,
# concat, numgen, hash, rt, fib, xfrm.
_SAFE = {1, *range(7, 14), *range(23, 28)}
_ATTEMPTS = 5  # at a consistent picture of all sets: others may change theirs all the time
_PATIENCE = 30.0  # seconds for the child
_CHILD = """\
import ctypes, sys
libc = ctypes.CDLL(None)
libc.prctl(4, 0, 0, 0, 0)
if len(sys.argv) > 1 and libc.setns(int(sys.argv[1]), 0x40000000):
    sys.exit(1)
library = ctypes.CDLL("libnftables.so.1")
library.nft_ctx_new.restype = ctypes.c_void_p
context = ctypes.c_void_p(library.nft_ctx_new(0))
library.nft_ctx_buffer_output(context)
library.nft_ctx_buffer_error(context)
library.nft_run_cmd_from_buffer(context, b"list sets")
"""


class Neighbours:
    """The sets in the network namespace of the thread that made this object, through a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.looked_at = -1  # the number of the last transaction at the last look
        self._found: tuple[str, ...] = ()
        self._survives: bool | None = None  # None: not asked yet

    def close(self) -> None:
        """Close the namespace's file."""
        os.close(self._namespace)

    def deadly(self, known: int) -> tuple[str, ...]:
        """Return the sets that end any caller of the library now, such as `ip other s`.

        `known` is the number of the last transaction until which nobody else can have changed
        anything since the last look.
        """
        if self._survives:
            return ()
        generation = self._channel.generation()
        if generation == known:
            self.looked_at = generation
        else:
            with suppress(BusyError):  # the last picture counts, and the next look starts again
                self._found = tuple(suspicious(self._channel))
                self.looked_at = generation
            if self._found and self._survives is None:
                self._survives = survives(self._namespace)
        return () if self._survives else self._found


def suspicious(channel: Channel) -> Iterator[str]:
    """Yield family, table and name of each set whose declaration older versions cannot read."""
    for number, answer in channel.dump_all(Message.GET_SET, _ATTEMPTS):
        parts = netlink.parts(answer)
        if Set.USER_DATA in parts and not is_safe(parts[Set.USER_DATA]):
            family = FAMILY_NAMES.get(number, str(number))
            yield f"{family} {netlink.text(parts[Set.TABLE])} {netlink.text(parts[Set.NAME])}"


def is_safe(user_data: bytes) -> bool:
    """Whether every libnftables survives reading a set with this user data."""
    for kind, value in _user_data(user_data):
        if kind in {_KEY, _DATA}:
            expression = dict(_user_data(value)).get(_EXPRESSION, b"")
            if int.from_bytes(expression, sys.byteorder) not in _SAFE:
                return False
    return True


def survives(namespace: int) -> bool:
    """Whether a child process survives when libnftables reads all sets of a network namespace."""
    there = os.fstat(namespace).st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
    argv = [sys.executable, "-I", "-S", "-c", _CHILD, *([] if there else [str(namespace)])]
    quiet = subprocess.DEVNULL
    try:
        child = subprocess.run(
            argv,
            check=False,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            timeout=_PATIENCE,
            pass_fds=() if there else (namespace,),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return child.returncode == 0


def _user_data(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each piece of user data.

    One byte each for kind and length, then the value.
    """
    position = 0
    while position + 2 <= len(data):
        kind, length = data[position], data[position + 1]
        yield kind, data[position + 2 : position + 2 + length]
        position += 2 + length
