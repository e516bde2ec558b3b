"""What an explanation costs in a table with many Services: time, and memory at most.

python -m tests.tools.explain --services 10000
"""

import argparse
import subprocess
import sys

from nftproxy.address import Family
from nftproxy.lab import build
from nftproxy.lab.namespace import enter
from nftproxy.model import Object
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import new_namespace, table_in

_SMALL = """
import os, subprocess, sys, time
start = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
code = os.waitstatus_to_exitcode(status)
print(f"{time.monotonic() - start:.2f} s  {usage.ru_maxrss // 1024} MB  exit code {code}")
"""
"""A parent without memory of its own.

The kernel counts what a child had before it became another program.
"""

COMMANDS = (("--help",), ("10.96.1.7:80",), ("default/s257:http",))
ENDPOINTS = 5
LINKS = (
    "link add nodes type veth peer name far",
    "link set nodes up",
    "link set far up",
    "addr add 192.168.50.11/24 dev nodes",
    "route add default via 192.168.50.1",
)


def objects(number: int) -> list[Object]:
    found: list[Object] = []
    for one in range(number):
        name = f"s{one}"
        addresses = [f"10.244.{node}.{one % 250 + 2}" for node in range(ENDPOINTS)]
        found.append(service(name, f"10.96.{one // 250}.{one % 250 + 1}"))
        found.append(endpoint_slice(name, [endpoint(address) for address in addresses]))
    return found


def measure(arguments: tuple[str, ...]) -> str:
    """Run a command; say what it took."""
    command = [sys.executable, "-m", "nftproxy", "explain", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", _SMALL, *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=10_000)
    number = parser.parse_args().services
    with new_namespace() as netns:
        build.batch("ip", netns, LINKS)
        with table_in(netns, *objects(number)) as table:
            table.sync(Family.IPv4, [])
        for arguments in COMMANDS:
            with enter(netns):
                print(f"nftproxy explain {' '.join(arguments):20} {measure(arguments)}")


if __name__ == "__main__":
    main()
