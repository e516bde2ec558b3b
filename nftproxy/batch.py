"""Element transactions, as nf_tables takes them: packed by ourselves and sent over a netlink socket of our own.

libnftables reads all chains and sets of all tables before each command, resolves names by DNS, and takes 50 MB for each MB of JSON. None
of that is needed to say "add these keys": 100 000 elements are 5 MB of packed bytes, and one element costs the same whatever else is
in the kernel. Programs, whose text is not ours to compile, stay libnftables' work.

A transaction happens whole or not at all. The kernel names the element that it refused, and so does the error.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from nftproxy.compiler import Key, Value, Verdict
from nftproxy.errors import ExistsError, KernelError, MissingError
from nftproxy.packing import Shape, attribute, comment, nest, shape, verdict

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFT = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEWSETELEM, _DELSETELEM = _NFT | 12, _NFT | 14
_REQUEST, _ACK, _CREATE = 1, 4, 0x400
_ACK_HAS_ATTRIBUTES = 0x200
_NLMSG_ERROR = 2
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE = 32
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED_HEAD = struct.Struct("=HHHHHH")
_EDGES = b"\0\0\0\x0a"  # nfgenmsg of a batch's first and last message: no family, version 0, subsystem nf_tables in network order
_ELEMENTS = b"\1\0\0\0" + attribute(1, b"nftproxy\0")  # nfgenmsg of family inet, and the table
_LARGEST = 60_000  # bytes of elements in one message: the length of an attribute has 16 bits
_MOST = 64 << 20  # bytes in one transaction


class Add(NamedTuple):
    """Elements to add to one set or map."""

    where: str
    items: Mapping[Key, Value]


class Remove(NamedTuple):
    """Keys to delete from one set or map."""

    where: str
    keys: Iterable[Key]


Command = Add | Remove


class Sender:
    """The netlink socket that transactions leave by; not for two threads at once."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 12)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # errors without our message in them,
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)  # but with the place in it
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _MOST)
        except PermissionError:  # in a user namespace; the limit of the system has to do
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
        self._sequence = 0

    @property
    def port(self) -> int:
        """The netlink port id: what it commits is ours."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, commands: Iterable[Command]) -> None:
        """Apply commands in their order, in one transaction; MissingError, ExistsError or KernelError when it was refused."""
        messages = encode(commands, self._sequence)
        if not messages:
            return
        first = self._sequence
        self._sequence = (first + len(messages)) & 0x7FFFFFFF
        try:
            self._socket.send(b"".join(messages))
            answers = list(self._answers())
        except OSError as error:
            raise _error(error.errno or 0, "") from error
        for answer in answers:
            if answer.code:
                number = answer.sequence - first
                refused = _element_at(messages[number], answer.offset) if answer.offset and 0 < number < len(messages) else ""
                raise _error(answer.code, refused)
        if not answers:
            raise KernelError("the kernel did not answer a transaction")

    def _answers(self) -> Iterator["_Answer"]:
        """Yield what the kernel said, which it did before it let go of our message."""
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            yield from _answers(data)


def encode(commands: Iterable[Command], sequence: int = 0) -> list[bytes]:
    """Return the messages of a transaction; none when there is nothing to do."""
    parts: list[tuple[int, int, bytes]] = []
    for command in commands:
        kind, flags = (_NEWSETELEM, _REQUEST | _CREATE) if isinstance(command, Add) else (_DELSETELEM, _REQUEST)
        parts += [(kind, flags, body) for body in _bodies(command)]
    if not parts:
        return []
    kind, flags, body = parts[-1]
    parts[-1] = kind, flags | _ACK, body
    whole = [(_BATCH_BEGIN, _REQUEST, _EDGES), *parts, (_BATCH_END, _REQUEST, _EDGES)]
    return [_HEADER.pack(16 + len(b), k, f, sequence + number, 0) + b for number, (k, f, b) in enumerate(whole)]


def _bodies(command: Command) -> Iterator[bytes]:
    """Yield the contents of as many messages as the elements of a command need."""
    head = _ELEMENTS + attribute(2, command.where.encode() + b"\0")
    held = shape(command.where)
    if held is None:
        raise KernelError(f"there is no set or map {command.where!r} in the program")
    waiting: list[bytes] = []
    size = 0
    for element in _additions(held, command.items) if isinstance(command, Add) else _removals(held, command.keys):
        if size + len(element) > _LARGEST:
            yield head + nest(3, b"".join(waiting))
            waiting, size = [], 0
        waiting.append(element)
        size += len(element)
    if waiting:
        yield head + nest(3, b"".join(waiting))


def _removals(held: Shape, keys: Iterable[Key]) -> Iterator[bytes]:
    """Yield each key as an element: an attribute that holds one for the key."""
    head, pack = _head(held, 0), held.key.pack
    for key in keys:
        yield head + pack(key)


def _additions(held: Shape, items: Mapping[Key, Value]) -> Iterator[bytes]:
    """Yield each element: the key's attribute, then those of value and comment."""
    pack = held.key.pack
    if held.value is not None:
        head, pack_value = _head(held, 8 + held.value.size), held.value.pack
        before_value = nest(2, attribute(1, bytes(held.value.size)))[:8]
        for key, value in items.items():
            fields = (value,) if type(value) is str else value
            yield head + pack(key) + before_value + pack_value(fields)  # type: ignore[arg-type]
        return
    plain = _head(held, 0)
    for key, value in items.items():
        if type(value) is not Verdict:
            yield plain + pack(key)
            continue
        data = nest(2, nest(2, verdict(value.verb, value.target)))
        if value.comment:
            data += attribute(6, comment(value.comment))
        yield _head(held, len(data)) + pack(key) + data


def _head(held: Shape, more: int) -> bytes:
    """Return what stands before the key of an element that has so many bytes after it."""
    size = held.key.size
    return _NESTED_HEAD.pack(12 + size + more, 0x8001, 8 + size, 0x8001, 4 + size, 1)


class _Answer(NamedTuple):
    """What became of a message: its number, an error number or 0, and where in it the error is, if the kernel told."""

    sequence: int
    code: int
    offset: int


def _answers(data: bytes) -> Iterator[_Answer]:
    position = 0
    while position + 36 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, position)
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", data, position + 16)[0]
            offset = 0
            at = position + 36
            while flags & _ACK_HAS_ATTRIBUTES and at + 8 <= position + length:
                size, number = _ATTRIBUTE.unpack_from(data, at)
                if number == 2:  # NLMSGERR_ATTR_OFFS
                    offset = struct.unpack_from("=I", data, at + 4)[0]
                at += (size + 3) & ~3
            yield _Answer(sequence, code, offset)
        position += (length + 3) & ~3


def _element_at(message: bytes, offset: int) -> str:
    """Name the element at a place in a message of ours, as set and key; empty when the place is none of an element."""
    size, _ = _ATTRIBUTE.unpack_from(message, 20 + 16)
    where = message[40 : 36 + size - 1].decode()
    held = shape(where)
    if held is None or offset + 12 + held.key.size > len(message):
        return ""
    key = held.key.unpack(message[offset + 12 : offset + 12 + held.key.size])
    return f"{where}: {' . '.join(map(str, key))}"


def _error(code: int, refused: str) -> KernelError:
    text = f"{refused}: {os.strerror(code)}" if refused else os.strerror(code)
    if code == errno.ENOENT:
        return MissingError(text)
    if code == errno.EEXIST:
        return ExistsError(text)
    if code == errno.EPERM:
        return KernelError(text, hint="run as root or with the capability NET_ADMIN")
    return KernelError(text)
