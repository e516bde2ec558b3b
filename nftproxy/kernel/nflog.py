"""Packets that rules log: the reading end of a group of NFLOG.

A group has one reader. The kernel gives it back when the reader's socket is closed, also when the
process is killed; packets of a group that nobody reads cost the kernel one look-up.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nftproxy.errors import UnusableError
from nftproxy.kernel.headers import PacketHeader, packet_of
from nftproxy.table import netlink
from nftproxy.table.netlink import LogCommand, LogMessage, LogPart, LogSetting

_READERS = Path("/proc/thread-self/net/netfilter/nfnetlink_log")
_HINT = "ss --netlink --processes lists who reads NFLOG; give that program another group"
_BATCH = 64  # messages read at once; the rest waits in the socket


class LoggedPacket(NamedTuple):
    """A packet that a rule logged: the prefix of the rule, and what its headers say."""

    prefix: str
    header: PacketHeader


class Nflog:
    """The reader of a group, in the network namespace of the thread that made it."""

    def __init__(self, group: int, size: int) -> None:
        """Take a group; at most `size` bytes of each packet are copied.

        UnusableError if another program has it, if the kernel lacks NFLOG, or without the
        capability NET_ADMIN.
        """
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETFILTER
        )
        try:
            self.socket.bind((0, 0))
            settings = {
                LogSetting.COMMAND: struct.pack("=B", LogCommand.BIND),
                LogSetting.MODE: struct.pack(">IBB", size, netlink.COPY_PACKETS, 0),
                LogSetting.THRESHOLD: struct.pack(">I", 1),  # each at once, not a second later
            }
            for number, (setting, value) in enumerate(settings.items(), 1):
                self._configure(group, number, netlink.attribute(setting, value))
            self.socket.settimeout(0)
        except OSError as error:
            self.socket.close()
            raise _refused(group, error) from error

    def close(self) -> None:
        """Give the group back."""
        self.socket.close()

    def packets(self) -> Iterator[LoggedPacket]:
        """Yield the packets that wait, without those that are not IP."""
        for _ in range(_BATCH):
            try:
                data = self.socket.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some were lost; the rest follows
                continue
            yield from _packets(data)

    def _configure(self, group: int, number: int, setting: bytes) -> None:
        """Send a setting of the group and wait for the answer."""
        kind = netlink.LOG << 8 | LogMessage.CONFIG
        body = struct.pack(">BBH", socket.AF_UNSPEC, 0, group) + setting
        self.socket.send(netlink.message(kind, netlink.REQUEST | netlink.ACK, number, body))
        while True:
            data = self.socket.recv(1 << 16)
            for kind, _, sequence, (start, _) in netlink.messages(data):
                if kind == netlink.ERROR and sequence == number:
                    code = -struct.unpack_from("=i", data, start)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return


def _packets(data: bytes) -> Iterator[LoggedPacket]:
    for kind, _, _, (start, end) in netlink.messages(data):
        if kind == netlink.LOG << 8 | LogMessage.PACKET:
            parts = netlink.parts(data, (start + 4, end))
            header = packet_of(parts.get(LogPart.PAYLOAD, b""))
            if header:
                yield LoggedPacket(netlink.text(parts.get(LogPart.PREFIX, b"")), header)


def _refused(group: int, error: OSError) -> UnusableError:
    """Return why the kernel refuses a group; it says EPERM also where another program has it."""
    owner = _owner(group)
    if owner or error.errno == errno.EBUSY:
        return UnusableError(
            f"{owner or 'another program'} reads group {group} of NFLOG already",
            hint=_HINT,
        )
    if error.errno == errno.EPERM:
        return UnusableError(
            f"another program reads group {group} of NFLOG already, or this one may not",
            hint=f"{_HINT}; NFLOG needs the capability NET_ADMIN",
        )
    return UnusableError(
        f"this kernel has no NFLOG: {error.strerror}", hint="modprobe nfnetlink_log"
    )


def _owner(group: int) -> str:
    """Return the program that reads a group; empty if none does."""
    with suppress(OSError):
        for line in _READERS.read_text().splitlines():
            number, port, *_ = line.split()
            if int(number) == group:
                with suppress(OSError):  # a first socket has the number of its process
                    name = Path(f"/proc/{port}/comm").read_text().strip()
                    return f"{name}, process {port},"
                return "another program"
    return ""
