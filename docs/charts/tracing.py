"""What `nftproxy trace` costs while it runs: connections per second with and without it, in turns.

    sudo .venv/bin/python docs/charts/tracing.py --services 1000 --rounds 10

Every connection goes to the Service that is traced, which is the worst case. It has 64 ports: with
one, the client would soon have used each of its own.
"""

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from nftproxy.address import Family
from nftproxy.bench.bed import Bed
from nftproxy.bench.client import BenchTarget, Order
from nftproxy.bench.offer import Offer
from nftproxy.bench.traffic import BenchClient
from nftproxy.bench.workload import decode_service, decode_slice, node_settings
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.namespace import enter
from nftproxy.store import Store
from nftproxy.sync.table import Table

PORTS = range(1000, 1064)
READINGS = 30  # connections to each port, one after the other
TRACE = (sys.executable, "-m", "nftproxy", "trace")


def load(bed: Bed, offer: Offer) -> tuple[str, str]:
    """Write the table of all services; return address and name of the one to trace."""
    settings = node_settings()
    with enter(bed.node):
        kernel = Kernel()
    with kernel:
        table = Table(settings, Store(settings.families), kernel)
        table.store.put(offer.workload().service_cidr())
        for number in range(1, offer.services):
            one = offer.load(number)
            table.store.put(one.service)
            table.store.put(one.slices[0])
        service, piece = offer.documents(0)
        ports = [{**service["spec"]["ports"][0], "name": f"p{n}", "port": n} for n in PORTS]
        service["spec"]["ports"] = ports
        piece["ports"] = [{**piece["ports"][0], "name": f"p{n}"} for n in PORTS]
        table.store.put(decode_service(msgspec.json.encode(service)))
        table.store.put(decode_slice(msgspec.json.encode(piece)))
        table.sync(Family.IPv4, [])
        address: str = service["spec"]["clusterIP"]
        return address, f"{service['metadata']['namespace']}/{service['metadata']['name']}"


def measure(bed: Bed, address: str, service: str, rounds: int, seconds: float, rate: int) -> None:
    """Take turns, and print."""
    targets = [BenchTarget(address, port) for port in PORTS]
    argv = [*TRACE, service, "--rate", str(rate), "--count", "1000"]
    rates: dict[bool, list[float]] = {False: [], True: []}
    times: dict[bool, list[float]] = {False: [], True: []}
    used = 0.0
    with BenchClient(bed) as client:
        for number in range(2 * rounds):
            traced = number % 2 == 1
            with tracing(bed, argv if traced else []) as process:
                before = _processor(process)
                rates[traced] += client.ask(Order(what="rate", targets=targets, seconds=seconds))[0]
                used += _processor(process) - before
                found = client.ask(Order(what="connections", targets=targets, count=READINGS))
                times[traced].append(1e6 * statistics.median(itertools.chain(*found)))
    pairs = [one / other for other, one in zip(rates[False], rates[True], strict=True)]
    ratio = statistics.median(pairs)
    without, together = (statistics.median(times[traced]) for traced in (False, True))
    print(f"connections per second  {statistics.median(rates[False]):.0f} without trace")
    print(f"                        {statistics.median(rates[True]):.0f} with it")
    print(f"                        {ratio:.3f} times, the median of {rounds} pairs")
    print(f"                        pairs {' '.join(f'{pair:.2f}' for pair in sorted(pairs))}")
    print(f"connect(), median       {without:.1f} µs without trace, {together:.1f} µs with it")
    print(f"trace itself            {100 * used / (rounds * seconds):.1f} % of a core")


@contextlib.contextmanager
def tracing(bed: Bed, argv: list[str]) -> Iterator[int]:
    """Run trace for the length of a block, from when its table is there.

    Without a command nothing runs.
    """
    if not argv:
        yield 0
        return
    with enter(bed.node):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while "trace" not in _tables():
            time.sleep(0.05)
    time.sleep(0.5)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _tables() -> str:
    return subprocess.run(
        ["nft", "list", "tables"], check=True, capture_output=True, text=True
    ).stdout


def _processor(pid: int) -> float:
    """Return the seconds of processor time that a process has used; 0 for none."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    """Read the arguments, build the bed, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rate", type=int, default=10)
    arguments = parser.parse_args()
    offer = Offer(arguments.services)
    with Bed() as bed:
        address, service = load(bed, offer)
        measure(bed, address, service, arguments.rounds, arguments.seconds, arguments.rate)


if __name__ == "__main__":
    main()
