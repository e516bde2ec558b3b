"""Connections from any namespace, and their outcomes: answered, refused, silent or unreachable.

    match connect("lab.pod1-1", "10.96.0.10", 80):
        case Answer(name=name, source=source): ...
        case Refused(): ...

- A UDP socket never has a source port that this process used before from the same namespace and
  address: conntrack remembers a port for minutes and would send its datagrams to the previous
  endpoint.
- TCP connections, and those of SCTP, are closed with a reset: otherwise thousands to one frontend
  would use up the ports in TIME-WAIT.
- Silence only shows that the wait was long enough. Prove a *drop* by a counter or a capture.
"""

import contextlib
import errno
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from nftproxy.errors import NftproxyError
from nftproxy.lab.namespace import enter

SOCKETS = {
    "TCP": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "UDP": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "SCTP": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),  # one-to-one style, which behaves like TCP
}
"""Type and number of each protocol's sockets."""

_UDP_PORTS = range(10000, 65536)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_LONGEST_LINE = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """An echo server answered.

    name, port, address    the server's name, port and address, after any translation
    source, source_port    the client as the server saw it
    client, client_port    the client's own view; different from the source after masquerading
    """

    name: str
    port: int
    address: str
    source: str
    source_port: int
    client: str
    client_port: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Refused at once, by a TCP reset or an ICMP port unreachable."""


@dataclass(frozen=True, slots=True)
class Silent:
    """No answer in time."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No route, or a broken connection.

    `error` is the name of the error number, such as EHOSTUNREACH.
    """

    error: str


Outcome = Answer | Refused | Silent | Unreachable


class Connection:
    """A TCP connection or a connected UDP socket with one answer, open until `close`."""

    def __init__(self, sock: socket.socket, answer: Answer) -> None:
        self.answer = answer
        self._socket = sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def again(self, timeout: float = 1.0) -> Outcome:
        """Send again. TCP: the same answer if the server echoed.

        UDP: the answer to a new datagram.
        """
        try:
            self._socket.settimeout(timeout)
            if self._socket.type == socket.SOCK_DGRAM:
                return _ask_datagram(self._socket)
            self._socket.sendall(b"again\n")
            return self.answer if _line(self._socket) == b"again\n" else Unreachable("ECONNRESET")
        except OSError as error:
            return _outcome(error)

    def close(self) -> None:
        """Close it; TCP with a reset."""
        self._socket.close()


def connect(
    namespace: str,
    address: str,
    port: int,
    protocol: str = "TCP",
    *,
    timeout: float = 1.0,
    source: str = "",
    source_port: int = 0,
) -> Outcome:
    """Connect from a namespace, read the answer, close.

    `timeout` in seconds; source address and port are chosen if not given.
    """
    result = open_connection(
        namespace, address, port, protocol, timeout=timeout, source=source, source_port=source_port
    )
    if not isinstance(result, Connection):
        return result
    result.close()
    return result.answer


def open_connection(
    namespace: str,
    address: str,
    port: int,
    protocol: str = "TCP",
    *,
    timeout: float = 1.0,
    source: str = "",
    source_port: int = 0,
) -> Connection | Refused | Silent | Unreachable:
    """Connect and keep the connection; the caller closes it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with enter(namespace):
        sock = socket.socket(family, *SOCKETS[protocol])
    try:
        sock.settimeout(timeout)
        if protocol != "UDP":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            if source or source_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((source, source_port))
        elif source_port:
            sock.bind((source, source_port))
        else:
            _bind_fresh(sock, namespace, source)
        outcome = _first_answer(sock, address, port, timeout)
    except BaseException:
        sock.close()
        raise
    if isinstance(outcome, Answer):
        return Connection(sock, outcome)
    sock.close()
    return outcome


def _first_answer(sock: socket.socket, address: str, port: int, timeout: float) -> Outcome:
    try:
        if sock.type == socket.SOCK_DGRAM:
            sock.connect((address, port))
            return _ask_datagram(sock)
        _connect_stream(sock, address, port, timeout)
        line = _line(sock)
    except OSError as error:
        return _outcome(error)
    return _parse(line, sock) if line else Unreachable("ECONNRESET")


def _connect_stream(sock: socket.socket, address: str, port: int, timeout: float) -> None:
    """Connect; OSError on failure.

    Between namespaces an ICMP error can arrive before connect() has released the socket. The kernel
    then only stores it (sk_err_soft), and the next SYN, a second later, would show the rejection.
    SO_ERROR returns the stored error at once.
    """
    sock.settimeout(0)
    status = sock.connect_ex((address, port))
    if status == errno.EINPROGRESS:
        status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not status:
            waiting = select.poll()
            waiting.register(sock, select.POLLOUT)
            if not waiting.poll(timeout * 1000):
                raise TimeoutError
            status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status:
        raise OSError(status, os.strerror(status))
    sock.settimeout(timeout)


def _ask_datagram(sock: socket.socket) -> Outcome:
    # EPERM: a rule of this host stopped it; after a reject, recv reports its ICMP error.
    with contextlib.suppress(PermissionError):
        sock.send(b"who?")
    return _parse(sock.recv(_LONGEST_LINE), sock)


def _line(sock: socket.socket) -> bytes:
    """Return the next line, or the rest before the other side closed."""
    received = sock.recv(_LONGEST_LINE)
    while received and not received.endswith(b"\n") and (more := sock.recv(_LONGEST_LINE)):
        received += more
    return received


def _parse(line: bytes, sock: socket.socket) -> Answer:
    client, client_port = sock.getsockname()[:2]
    try:
        said = json.loads(line)
        return Answer(
            name=said["name"],
            port=said["port"],
            address=said["address"],
            source=said["source"],
            source_port=said["source_port"],
            client=client,
            client_port=client_port,
        )
    except (ValueError, TypeError, KeyError):
        raise NftproxyError(
            f"{sock.getpeername()[:2]} is no echo server of a lab: it said {line[:80]!r}"
        ) from None


def _outcome(error: OSError) -> Refused | Silent | Unreachable:
    if isinstance(error, TimeoutError):
        return Silent()
    if isinstance(error, ConnectionRefusedError):
        return Refused()
    return Unreachable(errno.errorcode.get(error.errno or 0, str(error)))


_fresh_ports: dict[tuple[str, str, int], Iterator[int]] = {}
_fresh_ports_lock = threading.Lock()


def _bind_fresh(sock: socket.socket, namespace: str, source: str) -> None:
    """Bind a UDP socket to the next unused source port."""
    while True:
        with _fresh_ports_lock:
            port = next(
                _fresh_ports.setdefault((namespace, source, sock.family), iter(_UDP_PORTS)), None
            )
        if port is None:
            raise NftproxyError(
                f"all {len(_UDP_PORTS)} UDP source ports of {namespace} are used up",
                hint="add addresses and name one as the source, or use another client",
            )
        try:
            sock.bind((source, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
