"""What it costs to ask a node with many Services: python -m tests.tools.asking [SERVICES].

Prints seconds and memory of `explain`, and the share of a processor that `top` takes.
"""

import os
import pty
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

from nftproxy.address import Family
from nftproxy.lab import namespace
from nftproxy.model import Object
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.process import NFTPROXY
from tests.support.tables import new_namespace, table_in
from tests.support.world import settings

_WATCHED = 30.0  # seconds
_MEASURED = """
import atexit, pathlib, sys
from nftproxy.__main__ import main
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print(status.read_text(), file=sys.stderr))
main()
"""


def main(services: int) -> None:
    """Fill a table, and ask."""
    with new_namespace() as where:
        subprocess.run(["ip", "-n", where, "link", "set", "lo", "up"], check=True)
        objects: list[Object] = []
        for number in range(services):
            name, high, low = f"s{number}", number // 250, number % 250 + 1
            objects += [
                service(name, f"10.{96 + high // 250}.{high % 250}.{low}"),
                endpoint_slice(
                    name, [endpoint(f"10.244.{high % 250}.{each}") for each in range(1, 4)]
                ),
            ]
        chosen = settings(families=[Family.IPv4])
        with table_in(where, *objects, chosen=chosen) as table:
            table.sync(Family.IPv4, [])
        print(f"{services} Services with 3 endpoints each")
        for arguments in (
            ("--help",),
            ("10.96.0.1:80",),
            (f"default/s{services // 2}",),
        ):
            seconds, megabytes = ask(where, "explain", *arguments)
            print(f"explain {' '.join(arguments):20} {seconds:.2f} s, {megabytes:.0f} MB")
        print(f"top, a picture every 2 s      {watch(where):.1%} of a processor")


def ask(where: str, *arguments: str) -> tuple[float, float]:
    """Run a command to its end: its seconds, and its memory in MB."""
    with namespace.enter(where):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
        )
        seconds = time.monotonic() - start
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)
    return seconds, int(peak) / 1000


def watch(where: str) -> float:
    """Run `top` on a terminal for a while.

    Return its share of a processor after the first picture.
    """
    primary, secondary = pty.openpty()
    with namespace.enter(where):
        process = subprocess.Popen(
            [*NFTPROXY, "top"], stdin=secondary, stdout=secondary, stderr=secondary
        )
    os.close(secondary)
    threading.Thread(target=_drain, args=(primary,), daemon=True).start()
    time.sleep(5)
    before = _processor(process.pid)
    time.sleep(_WATCHED)
    share = (_processor(process.pid) - before) / _WATCHED
    process.terminate()
    process.wait()
    return share


def _drain(terminal: int) -> None:
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:
        pass


def _processor(pid: int) -> float:
    """The seconds of a processor that a process has used."""
    fields = re.split(r"\) ", Path(f"/proc/{pid}/stat").read_text())[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
