"""What schedulers do and cost: clients that a change moves, a first packet, a changed endpoint.

    .venv/bin/python docs/charts/schedulers.py --moved
    sudo .venv/bin/python docs/charts/schedulers.py --rounds 10

The first draws `schedulers.svg` from computed tables; the kernel's packets are compared with these
in tests/packets/test_schedulers.py. The second measures, all schedulers in turns, with the same
number of endpoints each.
"""

import argparse
import hashlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
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
from nftproxy.model import Scheduler
from nftproxy.selection import Endpoint
from nftproxy.store import Store
from nftproxy.sync.table import Table
from nftproxy.table import maglev
from nftproxy.table.jhash import jhash
from nftproxy.table.schema import SEED

NUMBERS = (2, 3, 10, 100)
# The kernel's hashes of 10 000 addresses
CLIENTS = [jhash((ip_address("10.0.0.0") + 977 * number).packed, SEED) for number in range(10_000)]
CHANGES = 10  # of each kind, at most
READINGS = 200  # connections of a round

Fill = Callable[[Sequence[Endpoint]], Sequence[Endpoint]]


def ours(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Return the table of `maglev`."""
    return maglev.table(dict.fromkeys(endpoints, 100))


def original(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Return a table as Maglev's authors fill it, of about the same size.

    Each endpoint in its turn gets the next free slot of those that it prefers.
    """
    size = 2039 if len(endpoints) <= 32 else 16381
    digests = [hashlib.sha256(str(each).encode()).digest() for each in endpoints]
    places = [int.from_bytes(digest[:8]) % size for digest in digests]
    skips = [int.from_bytes(digest[8:16]) % (size - 1) + 1 for digest in digests]
    table: list[Endpoint | None] = [None] * size
    left = size
    for number in itertools.cycle(range(len(endpoints))):
        while table[places[number]] is not None:
            places[number] = (places[number] + skips[number]) % size
        table[places[number]] = endpoints[number]
        left -= 1
        if not left:
            break
    return [each for each in table if each]


def modulo(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Return the list of `source-hash`."""
    return sorted(endpoints)


FILLS: dict[str, Fill] = {
    "source-hash": modulo,
    "Maglev as published": original,
    "maglev": ours,
}


def endpoints(number: int, first: int = 0) -> list[Endpoint]:
    """Return some endpoints."""
    numbers = range(first, first + number)
    return [Endpoint(f"10.244.{each // 250}.{each % 250 + 1}", 8080) for each in numbers]


def moved(before: Sequence[Endpoint], after: Sequence[Endpoint]) -> float:
    """Return the share of clients that a change moves."""
    changed = sum(
        before[one * len(before) >> 32] != after[one * len(after) >> 32] for one in CLIENTS
    )
    return changed / len(CLIENTS)


def changes(fill: Fill, number: int) -> tuple[list[float], list[float]]:
    """Return the shares of clients that are moved by the removal and the addition of one."""
    some = endpoints(number)
    before = fill(some)
    gone = some[:: max(1, number // CHANGES)]
    removed = [moved(before, fill([each for each in some if each != one])) for one in gone]
    come = endpoints(min(number, CHANGES), 1000)
    return removed, [moved(before, fill([*some, one])) for one in come]


def draw(output: Path) -> None:
    """Print how many clients are moved, as multiples of 1/N, and draw the removals."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    found: dict[str, list[float]] = {name: [] for name in FILLS}
    print("of 10 000 clients, as multiples of 1/N: mean and worst, removal and addition")
    for number in NUMBERS:
        for name, fill in FILLS.items():
            removed, added = changes(fill, number)
            found[name].append(100 * statistics.mean(removed))
            words = [
                f"{number * statistics.mean(each):.2f} {number * max(each):.2f}"
                for each in (removed, added)
            ]
            print(f"{number:>4} endpoints  {name:<20} {words[0]}   {words[1]}")
    style = {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "nftproxy"}
    with rc_context(style):  # type: ignore[arg-type]
        chart = Figure(figsize=(9, 4.2), layout="constrained")
        axes = chart.subplots()
        axes.set_title("Clients that get another endpoint when one is removed", loc="left")
        axes.set_ylabel("% of 10 000 clients")
        for place, (name, color) in enumerate(
            zip(FILLS, ("#999999", "#56b4e9", "#d55e00"), strict=True)
        ):
            at = [group + 0.27 * (place - 1) for group in range(len(NUMBERS))]
            bars = axes.bar(at, found[name], 0.25, color=color, label=name)
            axes.bar_label(bars, fmt="%.1f", fontsize=9)
        for group, number in enumerate(NUMBERS):
            line = axes.hlines(100 / number, group - 0.42, group + 0.42, color="#333333", ls=":")
            line.set_label("one share, 1/N" if not group else "")
        axes.set_xticks(range(len(NUMBERS)), [f"{number} endpoints" for number in NUMBERS])
        axes.legend(frameon=False)
        chart.savefig(output, metadata={"Date": None})
    text = output.read_text()
    output.write_text("".join(f"{line.rstrip()}\n" for line in text.splitlines()))


class Services:
    """A Service with each scheduler in the table of a bed."""

    def __init__(self, bed: Bed, number: int) -> None:
        self._offer = Offer(100, number)
        self._settings = node_settings()
        with enter(bed.node):
            self._kernel = Kernel()
        self._table = Table(self._settings, Store(self._settings.families), self._kernel)
        self._replaced = dict.fromkeys(Scheduler, 0)
        self.targets: list[BenchTarget] = []
        for place, scheduler in enumerate(Scheduler):
            service, piece = self._offer.documents(place)
            service["metadata"]["annotations"] = {"nftproxy.io/scheduler": str(scheduler)}
            self._table.store.put(decode_service(msgspec.json.encode(service)))
            self._table.store.put(decode_slice(msgspec.json.encode(piece)))
            self.targets.append(self._offer.target(place, proxied=True))
        self._table.sync(Family.IPv4, [])

    def change(self, scheduler: Scheduler) -> float:
        """Replace an endpoint; return the seconds of a sync."""
        number = list(Scheduler).index(scheduler)
        self._replaced[scheduler] += 1
        self._table.store.put(self._offer.load(number, self._replaced[scheduler]).slices[0])
        began = time.perf_counter()
        self._table.sync(Family.IPv4, [])
        return time.perf_counter() - began

    def back(self) -> None:
        """Return to the first endpoints."""
        for number, _ in enumerate(Scheduler):
            self._table.store.put(self._offer.load(number).slices[0])
        self._table.sync(Family.IPv4, [])


def measure(rounds: int, number: int) -> None:
    """Measure connections and changes, all schedulers in turns, and print."""
    with Bed() as bed, BenchClient(bed) as client:
        services = Services(bed, number)
        for pid in (client.pid, bed.endpoints):
            os.sched_setaffinity(pid, {max(os.sched_getaffinity(0))})
        connecting: dict[Scheduler, list[float]] = {each: [] for each in Scheduler}
        changing: dict[Scheduler, list[float]] = {each: [] for each in Scheduler}
        for _ in range(rounds):
            order = Order(what="connections", targets=services.targets, count=READINGS)
            for each, readings in zip(Scheduler, client.ask(order), strict=True):
                connecting[each] += readings
            for _ in range(5):
                for each in Scheduler:
                    changing[each].append(services.change(each))
            services.back()
    for title, found in (("connect()", connecting), ("an endpoint changes", changing)):
        plain = statistics.median(found[Scheduler.RANDOM])
        for each in Scheduler:
            middle = statistics.median(found[each])
            print(
                f"{number} endpoints  {title:<20} {each:<12} {1e6 * middle:9.1f} µs  "
                f"{middle / plain:6.2f} times random"
            )


def main() -> None:
    """Read the arguments; draw or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moved", action="store_true", help="compute and draw, without packets")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--endpoints", type=int, default=10, help="of each Service")
    arguments = parser.parse_args()
    if arguments.moved:
        draw(Path(__file__).with_suffix(".svg"))
    else:
        measure(arguments.rounds, arguments.endpoints)


if __name__ == "__main__":
    main()
