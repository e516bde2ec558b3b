"""What it costs to ask a node with many Services: time, memory at most, shares of a processor.

python -m tests.tools.asking [--services 10000] [explain] [doctor] [report] [top] [page]
"""

import argparse
import contextlib
import os
import pty
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nftproxy.address import Family
from nftproxy.lab import build
from nftproxy.lab.namespace import enter
from nftproxy.model import Object
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.process import NFTPROXY
from tests.support.tables import new_namespace, table_in

_WATCHED = 30.0  # seconds
_WARM = 6.0  # seconds until a process has begun, and read everything once
_PORT = 10260
_SMALL = """
import os, subprocess, sys, time
start = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(f"{time.monotonic() - start:.2f} s, {usage.ru_maxrss // 1024} MB")
"""
"""A parent without memory of its own.

The kernel counts what a child had before it became another program.
"""
_LINKS = (
    "link add nodes type veth peer name far",
    "link set nodes up",
    "link set far up",
    "link set lo up",
    "addr add 192.168.50.11/24 dev nodes",
    "route add default via 192.168.50.1",
    "neigh add 192.168.50.1 lladdr 02:00:00:00:00:01 dev nodes",
)


def objects(number: int) -> Iterator[Object]:
    for one in range(number):
        addresses = [f"10.244.{node}.{one % 250 + 2}" for node in range(3)]
        yield service(f"s{one}", f"10.96.{one // 250}.{one % 250 + 1}")
        yield endpoint_slice(f"s{one}", [endpoint(address) for address in addresses])


def run(where: str, *arguments: str) -> None:
    """Run a command to its end, and print what it took."""
    command = [*NFTPROXY, *arguments]
    with enter(where):
        done = subprocess.run(
            [sys.executable, "-c", _SMALL, *command], capture_output=True, text=True, check=True
        )
    _say(" ".join(arguments), done.stdout.strip())


def explain(where: str) -> None:
    for arguments in (("--help",), ("10.96.1.7:80",), ("default/s257:http",)):
        run(where, "explain", *arguments)


def doctor(where: str) -> None:
    run(where, "doctor")


def report(where: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(where, "report", "--output", f"{folder}/report.tar.gz")


def top(where: str) -> None:
    for arguments in ((), ("--by", "unanswered")):
        with _running(where, "top", *arguments) as pid:
            _say(" ".join(("top", *arguments)), _share(pid))
    for waiting in (1000, 10_000):
        with _unanswered(where, waiting), _running(where, "top", "--by", "unanswered") as pid:
            _say(f"top --by unanswered, {waiting} wait", _share(pid))


def page(where: str) -> None:
    with _running(where, "page") as pid:
        time.sleep(12)  # nobody looks
        _say("page, nobody looks", _share(pid))
        for browsers in (1, 20):
            with contextlib.ExitStack() as stack:
                for _ in range(browsers):
                    stack.enter_context(_browser(where))
                time.sleep(_WARM)
                _say(f"page, {browsers} open", _share(pid))
        status = Path(f"/proc/{pid}/status").read_text()
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        _say("page, memory at most", f"{int(peak) // 1024} MB")
        start = time.monotonic()
        _get(where, "/").close()
        _say("page, the list", f"{time.monotonic() - start:.2f} s")


KINDS: dict[str, Callable[[str], None]] = {
    each.__name__: each for each in (explain, doctor, report, top, page)
}


def _say(what: str, took: str) -> None:
    print(f"{what:45} {took}", flush=True)


@contextlib.contextmanager
def _running(where: str, *arguments: str) -> Iterator[int]:
    """A command on a terminal, until the end of the block; its process, warm."""
    primary, secondary = pty.openpty()
    with enter(where):
        process = subprocess.Popen(
            [*NFTPROXY, *arguments], stdin=secondary, stdout=secondary, stderr=secondary
        )
    os.close(secondary)
    threading.Thread(target=_drain, args=(primary,), daemon=True).start()
    try:
        time.sleep(_WARM)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


@contextlib.contextmanager
def _unanswered(where: str, number: int) -> Iterator[None]:
    """Connections to a Service that nobody answers, for a minute."""
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    limit.write_text(str(max(int(limit.read_text()), 2 * number)))
    with enter(where):
        for _ in range(number):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(("10.96.0.1", 80))
    yield


@contextlib.contextmanager
def _browser(where: str) -> Iterator[None]:
    """An open page: the list once, then events."""
    _get(where, "/").close()
    stream = _get(where, "/events")
    threading.Thread(target=_drain, args=(stream.fileno(),), daemon=True).start()
    try:
        yield
    finally:
        stream.shutdown(socket.SHUT_RDWR)


def _get(where: str, path: str) -> socket.socket:
    """Ask for a page; read all of it unless it is a stream."""
    with enter(where):
        sock = socket.create_connection(("127.0.0.1", _PORT), timeout=60)
    close = "" if path == "/events" else "Connection: close\r\n"
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n".encode())
    while close and sock.recv(1 << 20):
        pass
    return sock


def _share(pid: int) -> str:
    """Return the share of a processor that a process takes for a while."""
    before = _processor(pid)
    time.sleep(_WATCHED)
    return f"{(_processor(pid) - before) / _WATCHED:.1%} of a processor"


def _processor(pid: int) -> float:
    """The seconds of a processor that a process has used."""
    fields = re.split(r"\) ", Path(f"/proc/{pid}/stat").read_text())[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    asked = parser.parse_args()
    with new_namespace() as where:
        build.batch("ip", where, _LINKS)
        with table_in(where, *objects(asked.services)) as table:
            table.sync(Family.IPv4, [])
        print(f"{asked.services} Services with 3 endpoints each")
        for kind in asked.kinds or KINDS:
            KINDS[kind](where)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
