"""Receives many messages of a socket in one call: recvmmsg(2), which Python's sockets lack.

The kernel lists a map in messages of 32 KB, and makes each while it is received. A thread that
receives them one by one asks for the interpreter after each, and waits up to 5 ms for it while
another thread computes: longer than the kernel takes.
"""

import ctypes
import errno
import os
import socket

MESSAGES = 32  # received in one call
_SIZE = 64 << 10  # bytes for each; nf_tables makes none that is longer than half of it
_WAIT_FOR_ONE = 0x10000  # MSG_WAITFORONE: for the first message only


class _Buffer(ctypes.Structure):
    """The iovec of readv(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """The msghdr of recvmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """The mmsghdr of recvmmsg(2)."""

    _fields_ = (("header", _Header), ("size", ctypes.c_uint))


class Batches:
    """Receives from one blocking socket; not for two threads at the same time."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._bytes = bytearray(MESSAGES * _SIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))
        self._messages = (_Message * MESSAGES)()
        self._buffers = (_Buffer * MESSAGES)()
        for number, (message, buffer) in enumerate(zip(self._messages, self._buffers, strict=True)):
            buffer.start, buffer.size = start + number * _SIZE, _SIZE
            message.header = _Header(buffers=ctypes.pointer(buffer), buffer_count=1)
        self._receive = ctypes.CDLL(None, use_errno=True).recvmmsg

    def receive(self) -> list[bytes]:
        """Wait for a message, and return it and those that are there after it.

        OSError if the socket fails, or a message is longer than any of nf_tables.
        """
        while True:
            number = self._receive(
                self._source.fileno(), self._messages, MESSAGES, _WAIT_FOR_ONE, None
            )
            if number >= 0:
                break
            if (failed := ctypes.get_errno()) != errno.EINTR:
                raise OSError(failed, os.strerror(failed))
        received = self._messages[:number]
        if any(message.header.flags & socket.MSG_TRUNC for message in received):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        starts = range(0, number * _SIZE, _SIZE)
        return [
            bytes(self._bytes[start : start + message.size])
            for start, message in zip(starts, received, strict=True)
        ]
