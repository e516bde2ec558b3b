"""The near end.

`python -m nftproxy.bench.client` measures what a client of services sees, one command per line, one
answer each.

It does nothing else, so that neither a large heap nor a garbage collection delays a reading. A
connection's time is that of connect(): on veth links the kernel completes both directions before it
returns.
"""

import gc
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from nftproxy.bench.lines import say

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_PATIENCE: Final = 5.0  # seconds until silence is an error
_LONG: Final = 30.0  # ... after connections without a pause, which may have a backlog
_WARM_UP: Final = 10


class BenchTarget(NamedTuple):
    """Where to connect."""

    address: str
    port: int


class Order(msgspec.Struct, kw_only=True):
    """What to measure.

    `count` readings for each target in turn, or as many as fit into `seconds`.
    """

    what: str
    targets: list[BenchTarget]
    count: int = 0
    seconds: float = 0.0


def connections(order: Order) -> list[list[float]]:
    """Return for each target the seconds of its connections.

    Targets take turns, so noise hits all alike.
    """
    return _in_turn(order, _connect)


def datagrams(order: Order) -> list[list[float]]:
    """Return for each target the seconds until the answer to the first datagram from a new port."""
    return _in_turn(order, _ask)


def rate(order: Order) -> list[list[float]]:
    """Return, as a single reading, the connections per second of all processors together.

    Each ends with the endpoint's answer: a forwarding process accepts a connection long before it
    can serve it.
    """
    began = time.perf_counter()
    until = began + order.seconds
    readers = []
    for _ in range(os.cpu_count() or 1):
        reader, writer = os.pipe()
        if not os.fork():
            try:
                os.write(writer, struct.pack("=q", _connect_until(order.targets, until)))
            finally:  # the copy of this process must never reach the command loop
                os._exit(0)
        os.close(writer)
        readers.append(reader)
    counts = [os.read(reader, 8) for reader in readers]
    took = time.perf_counter() - began
    for reader in readers:
        os.close(reader)
        os.wait()
    if not all(counts):
        raise BlockingIOError  # the timeout of the sockets in the failed process
    return [[sum(struct.unpack("=q", count)[0] for count in counts) / took]]


def throughput(order: Order) -> list[list[float]]:
    """Return for each target the bytes per second of one connection, counted by its receiver."""
    return [[_carried(target, order.seconds)] for target in order.targets]


_MEASURES: Final[dict[str, Callable[[Order], list[list[float]]]]] = {
    "connections": connections,
    "datagrams": datagrams,
    "rate": rate,
    "throughput": throughput,
}


def _in_turn(order: Order, measure: Callable[[BenchTarget], float]) -> list[list[float]]:
    for target in order.targets:
        for _ in range(_WARM_UP):
            measure(target)
    found: list[list[float]] = [[] for _ in order.targets]
    for _ in range(order.count):
        for target, readings in zip(order.targets, found, strict=True):
            readings.append(measure(target))
    return found


def _connect(target: BenchTarget) -> float:
    with _stream() as client:
        began = time.perf_counter()
        client.connect(target)
        return time.perf_counter() - began


def _stream() -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Otherwise thousands wait in TIME-WAIT
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEOUT)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
    return client


def _ask(target: BenchTarget) -> float:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ASK_AGAIN)
        client.connect(target)
        began = time.perf_counter()
        while True:  # a datagram may be lost; the repetition counts the whole time
            client.send(b"?")
            try:
                client.recv(16)
            except BlockingIOError:
                if time.perf_counter() - began > _PATIENCE:
                    raise
            else:
                return time.perf_counter() - began


def _connect_until(targets: list[BenchTarget], until: float) -> int:
    count = 0
    while time.perf_counter() < until:
        for target in targets:
            with _stream() as client:
                client.connect(target)
                client.shutdown(socket.SHUT_WR)
                client.recv(16)
            count += 1
    return count


def _carried(target: BenchTarget, seconds: float) -> float:
    with socket.create_connection(target, _LONG) as client:
        block = bytes(1 << 18)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)
        counted = int(client.makefile().readline())
        return counted / (time.perf_counter() - began)


_TIMEOUT, _ASK_AGAIN = struct.pack("ll", int(_PATIENCE), 0), struct.pack("ll", 1, 0)


def main() -> None:
    """Obey commands until the input ends."""
    gc.disable()
    for line in sys.stdin:
        order = msgspec.json.decode(line, type=Order)
        try:
            answer: object = {"readings": _MEASURES[order.what](order)}
        except OSError as error:
            # What sockets with SO_RCVTIMEO and SO_SNDTIMEO raise
            timeout = isinstance(error, BlockingIOError)
            answer = {
                "problem": f"{order.what}: "
                f"{f'no answer within {_PATIENCE:g} s' if timeout else error}"
            }
        say(answer)


if __name__ == "__main__":
    main()
