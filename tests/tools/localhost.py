"""What NodePorts on localhost cost, beside connections without a forwarder between.

Bytes a second in one connection, connections a second one after the other, the time of a question
and an answer on an open connection, and the memory of idle ones; in a namespace of its own.

    sudo .venv/bin/python -m tests.tools.localhost --seconds 5
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nftproxy.address import Family
from nftproxy.forwarder.messages import Backends, Instruction, LocalFrontend, encode
from nftproxy.forwarder.process import COMMAND
from nftproxy.lab.namespace import enter
from tests.support.forwarding import machine

PORT = 30080
IDLE = 1000  # connections
_fork = multiprocessing.get_context("fork")


def swallow(listening: socket.socket) -> None:
    """Receive whatever comes, one connection after the other."""
    buffer = bytearray(1 << 18)
    while True:
        connection, _ = listening.accept()
        with connection:
            while connection.recv_into(buffer):
                pass


class Echo(asyncio.Protocol):
    """Send back what arrives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


def answer(listening: socket.socket) -> None:
    """Answer all connections."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Echo, sock=listening, backlog=1024)
        await server.serve_forever()

    asyncio.run(serve())


def taken(pid: int) -> float:
    """Return the processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    )


Connect = Callable[[], socket.socket]


def gigabytes(connect: Connect, seconds: float) -> tuple[float, float]:
    """Send as much as goes: how many, and how many a second."""
    data, sent = bytes(1 << 18), 0
    with connect() as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sent += client.send(data)
    return sent / 1e9, sent / 1e9 / seconds


def connections(connect: Connect, seconds: float) -> tuple[float, float]:
    """Connect, ask and hear the answer, one after the other: how many, and how many a second."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with connect() as client:
            client.send(b"q")
            client.recv(1)
        count += 1
    return count, count / seconds


def answers(connect: Connect, seconds: float) -> tuple[float, float]:
    """Ask on one connection: how many answers, and the median time of one in microseconds."""
    times: list[float] = []
    with connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.perf_counter()
            client.send(b"q")
            client.recv(1)
            times.append(time.perf_counter() - begin)
    return len(times), statistics.median(times) * 1e6


def connector(netns: str, place: tuple[str, int]) -> Connect:
    def connect() -> socket.socket:
        with enter(netns):
            client = socket.socket()
        client.connect(place)
        return client

    return connect


def measure(seconds: float, netns: str) -> None:
    """Print the figures, measured in a namespace."""
    with enter(netns):
        listening = [socket.create_server(("192.0.2.10", 0), backlog=1024) for _ in range(3)]
    serving = [
        _fork.Process(target=work, args=(each,), daemon=True)
        for work, each in zip((swallow, answer, answer), listening, strict=True)
    ]
    for process in serving:
        process.start()
    with enter(netns):  # after these: they would keep its input open
        child = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    places = [each.getsockname() for each in listening]
    assert child.stdin
    order = Instruction(
        [
            (LocalFrontend(Family.IPv4, PORT + number), Backends("default/web", (place,)))
            for number, place in enumerate(places)
        ]
    )
    child.stdin.write(encode(order))
    child.stdin.flush()
    time.sleep(2)
    print(f"{'':24}{'direct':>12}{'forwarded':>12}   processor time of the forwarder")
    # The kernel looks for a free port longer, the more connections to one place have just ended: so
    # those without the forwarder have another endpoint.
    for what, work, number, other, unit in (
        ("GB a second", gigabytes, 0, 0, "s for each GB"),
        ("connections a second", connections, 1, 2, "s for each connection"),
        ("us for an answer", answers, 1, 2, "s for each answer"),
    ):
        _, plain = work(connector(netns, places[other]), seconds)
        before = taken(child.pid)
        count, through = work(connector(netns, ("127.0.0.1", PORT + number)), seconds)
        each = (taken(child.pid) - before) / count
        print(f"{what:24}{plain:12.4g}{through:12.4g}   {each:.2g} {unit}")
    before_idle = memory(child.pid)
    held = [connector(netns, ("127.0.0.1", PORT + 1))() for _ in range(IDLE)]
    time.sleep(2)
    print(f"{before_idle:.0f} MiB; with {IDLE} idle connections {memory(child.pid):.0f} MiB")
    for one in held:
        one.close()
    child.stdin.close()
    child.wait()


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="for each figure")
    seconds = parser.parse_args().seconds
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with machine() as netns:
        measure(seconds, netns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
