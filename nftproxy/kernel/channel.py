"""A netlink socket to nf_tables: requests, consistent dumps, and transactions.

A dump that a transaction touched is started again. A transaction happens whole or not at all, and
its error says how our picture of the table was wrong (`MissingError`, `ExistsError`).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nftproxy.errors import BusyError, ExistsError, KernelError, MissingError, UnusableError
from nftproxy.kernel.batches import Batches
from nftproxy.table import netlink
from nftproxy.table.netlink import Generation, Message

_ERRORS = {errno.ENOENT: MissingError, errno.EEXIST: ExistsError}
_SMALL = 100_000  # bytes that any socket may send at once
_SEND_BUFFER = 64 << 20  # bytes: a transaction is one message, and 20 000 elements need two million


class Modification(NamedTuple):
    """A part of a transaction."""

    kind: Message
    attributes: bytes
    flags: int = 0
    family: int = netlink.INET


class Channel:
    """One netlink socket; not for two threads at the same time."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETFILTER
            )
        except OSError as error:
            raise UnusableError(
                f"this kernel has no netfilter netlink: {error.strerror}",
                hint="modprobe nfnetlink nf_tables",
            ) from error
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.setsockopt(netlink.SOL_NETLINK, netlink.CAP_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    @property
    def port(self) -> int:
        """The netlink port id, which marks the commits of this socket."""
        return int(self._socket.getsockname()[0])

    def get(self, kind: int, attributes: bytes = b"", *, family: int = netlink.INET) -> list[bytes]:
        """Return the answers to a request for one object."""
        return self._exchange(kind, netlink.ACK, attributes, family)[0]

    def dump(
        self, kind: int, attributes: bytes = b"", *, family: int = netlink.INET
    ) -> Iterator[bytes]:
        """Yield the attributes of each object."""
        return (payload[4:] for payload in self._dump(kind, attributes, family))

    def dumps(self, kind: int, requests: Sequence[bytes]) -> list[list[bytes]]:
        """Return the attributes of the objects of each request, as one consistent picture."""
        answers = self._dumps(kind, requests, netlink.INET, 20)
        return [[payload[4:] for payload in each] for each in answers]

    def dump_all(self, kind: int, attempts: int) -> Iterator[tuple[int, bytes]]:
        """Yield the family and the attributes of each object in any family."""
        return (
            (payload[0], payload[4:])
            for payload in self._dump(kind, b"", netlink.UNSPECIFIED, attempts)
        )

    def _dump(self, kind: int, attributes: bytes, family: int, attempts: int = 20) -> list[bytes]:
        return self._dumps(kind, [attributes], family, attempts)[0]

    def _dumps(
        self, kind: int, requests: Sequence[bytes], family: int, attempts: int
    ) -> list[list[bytes]]:
        """Return the objects of each request, all as one consistent picture.

        The kernel marks a dump during which a transaction began, but not one that began during a
        commit: that one may miss what the transaction removes, or mix both states. Hence the
        generation, and the wait for the end of the commit.
        """
        for _ in range(attempts):
            generation = self.generation()
            self._settle()
            found = [self._exchange(kind, netlink.DUMP, each, family) for each in requests]
            if all(complete for _, complete in found) and self.generation() == generation:
                return [answers for answers, _ in found]
        raise BusyError(
            "the table changes too fast to be read",
            hint="another program changes table inet nftproxy; find it",
        )

    def generation(self) -> int:
        """Return the number of the last transaction in this network namespace, by any process.

        A transaction counts from the start of its commit.
        """
        (answer,) = self.get(Message.GET_GENERATION, family=netlink.UNSPECIFIED)
        return int.from_bytes(netlink.parts(answer, (4, len(answer)))[Generation.ID])

    def transact(self, changes: list[Modification]) -> None:
        """Make changes in one transaction; KernelError if the kernel refuses them all."""
        if not changes:
            return
        first = self._sequence + 1
        self._sequence += len(changes) + 2
        last = self._sequence - 1
        messages = [netlink.batch(netlink.BATCH_BEGIN, first)]
        for sequence, (kind, attributes, flags, family) in enumerate(changes, first + 1):
            asked = netlink.ACK if sequence == last else 0
            messages.append(netlink.nf_tables(kind, flags | asked, sequence, attributes, family))
        messages.append(netlink.batch(netlink.BATCH_END, self._sequence))
        data = b"".join(messages)
        if len(data) > _SMALL:
            self._enlarge()
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(
                f"writing nftables: {error.strerror}", hint="raise net.core.wmem_max"
            ) from error
        self._acknowledged(first, last)

    def _acknowledged(self, first: int, last: int) -> None:
        """Read the answers to a transaction.

        Errors to any part, then the answer to its last change.
        """
        failed = 0
        for kind, _, sequence, payload in self._messages():
            if kind != netlink.ERROR or not first <= sequence <= last:
                continue
            failed = failed or -struct.unpack_from("=i", payload)[0]
            # The kernel answers a refusal of the whole (no permission, a loop of chains) to its
            # start alone.
            if sequence == last or (sequence == first and failed):
                break
        if failed:
            raise _error("writing", failed)

    def _settle(self) -> None:
        """Wait until no transaction is being committed, by an empty one that waits for it."""
        self._socket.send(
            b"".join(netlink.batch(kind, 0) for kind in (netlink.BATCH_BEGIN, netlink.BATCH_END))
        )

    def _exchange(
        self, kind: int, flags: int, attributes: bytes, family: int
    ) -> tuple[list[bytes], bool]:
        """Send one request; return all answers, and whether they are one consistent picture."""
        self._sequence += 1
        self._socket.send(netlink.nf_tables(kind, flags, self._sequence, attributes, family))
        answers: list[bytes] = []
        complete = True
        for answered, marks, sequence, payload in self._messages():
            if sequence != self._sequence:
                continue
            complete = complete and not marks & netlink.DUMP_INTERRUPTED
            if answered == netlink.DONE:
                break
            if answered == netlink.ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                complete = complete and code != errno.EINTR
                if code not in (0, errno.EINTR):
                    raise _error("reading", code)
                break
            answers.append(payload)
        return answers, complete

    def _messages(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield kind, flags, sequence number and payload of messages, without an end."""
        for data in self._received():
            for kind, flags, sequence, (start, end) in netlink.messages(data):
                yield kind, flags, sequence, data[start:end]

    def _received(self) -> Iterator[bytes]:
        """Yield what arrives: one by one at first, as most answers are one piece and an end."""
        yield self._socket.recv(1 << 20)
        yield self._socket.recv(1 << 20)
        batches = Batches(self._socket)
        while True:
            yield from batches.receive()

    def _enlarge(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, netlink.SO_SNDBUFFORCE, _SEND_BUFFER)
        except PermissionError:  # in a user namespace; the limit of the system must suffice
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)


def _error(doing: str, code: int) -> KernelError:
    if code == errno.EPERM:
        return KernelError(
            f"{doing} nftables is not permitted: it needs the capability NET_ADMIN",
            hint="run as root or with the capability NET_ADMIN",
        )
    return _ERRORS.get(code, KernelError)(f"{doing} nftables: {os.strerror(code)}")
