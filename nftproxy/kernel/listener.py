"""Notices of changes to our table by others.

nf_tables announces every commit to all listeners. The kernel drops the announcements of our own
commits by the port id of our libnftables socket, so a first load of 100 000 elements costs nothing
here. Other programs change *their* tables all the time; a look at the table's name in each message
is all that this may cost.
"""

import ctypes
import enum
import socket
import struct
from dataclasses import dataclass

from nftproxy.kernel.reader import TABLE
from nftproxy.table import netlink
from nftproxy.table.netlink import Generation, Message

_OF_TABLE = 1  # the attribute that names the table, in every kind of message
# Bytes; a program that replaces a ruleset of its own sends tens of thousands of messages at once
_BUFFER = 8 << 20


class InterferenceKind(enum.IntEnum):
    """The part of our table to look at again."""

    NOTHING = 0
    ELEMENTS = 1
    PROGRAM = 2  # chains, rules or sets: load the program again, then compare the elements


@dataclass(slots=True)
class Interference:
    """The changes by others since the last look; `who` names the process if the kernel does."""

    kind: InterferenceKind = InterferenceKind.NOTHING
    who: str = ""


class Listener:
    """A subscription to changes of nf_tables by others than the sockets with `own` port ids.

    For one thread.
    """

    def __init__(self, own: set[int]) -> None:
        self.socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            netlink.NETFILTER,
        )
        self._pending = InterferenceKind.NOTHING
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, netlink.SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # in a user namespace; the limit of the system must suffice
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        _attach(self.socket, own)
        self.socket.bind((0, 0))
        self.socket.setsockopt(
            netlink.SOL_NETLINK, netlink.ADD_MEMBERSHIP, netlink.CHANGES_OF_NFTABLES
        )

    def close(self) -> None:
        """End the subscription."""
        self.socket.close()

    def look(self) -> Interference:
        """Read all waiting messages and return their meaning for our table."""
        found = Interference()
        while True:
            try:
                data = self.socket.recv(1 << 20)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: messages were lost, so anything may have happened
                found = Interference(InterferenceKind.PROGRAM, "unknown: too many changes at once")
                continue
            self._read_message(data, found)

    def _read_message(self, data: bytes, found: Interference) -> None:
        for kind, _, _, (start, end) in netlink.messages(data):
            message = data[start:end]
            number = kind & 0xFF
            if number == Message.NEW_GENERATION:  # the end of a transaction, with its author
                if self._pending:
                    found.kind = max(found.kind, self._pending)
                    found.who = _author(message) or found.who
                self._pending = InterferenceKind.NOTHING
            elif message[0] == netlink.INET and _table(message) == TABLE:
                elements = number in {Message.NEW_ELEMENTS, Message.DELETE_ELEMENTS}
                self._pending = max(
                    self._pending,
                    InterferenceKind.ELEMENTS if elements else InterferenceKind.PROGRAM,
                )


def _table(message: bytes) -> bytes:
    """Return the table that a message is about."""
    return next(
        (
            message[start:end]
            for kind, (start, end) in netlink.attributes(message, 4)
            if kind == _OF_TABLE
        ),
        b"",
    )


def _author(message: bytes) -> str:
    """Return name and number of the committing process."""
    parts = netlink.parts(message, (4, len(message)))
    name = netlink.text(parts.get(Generation.PROCESS_NAME, b""))
    return (
        f"{name}, process {int.from_bytes(parts[Generation.PROCESS])}"
        if name and Generation.PROCESS in parts
        else ""
    )


def _attach(listener: socket.socket, own: set[int]) -> None:
    """Let the kernel drop messages whose header has one of our port ids."""
    program = [(0x20, 0, 0, 12)]  # load nlmsg_pid; BPF reads it in network order
    for index, port in enumerate(sorted(own)):
        swapped = int.from_bytes(struct.pack("=I", port))
        program.append((0x15, len(own) - index, 0, swapped))  # equal: go to the last instruction
    program += [(0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)]  # accept; drop
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    listener.setsockopt(
        socket.SOL_SOCKET,
        netlink.SO_ATTACH_FILTER,
        struct.pack("@HP", len(program), ctypes.addressof(buffer)),
    )
