"""What `nftproxy bench` is too short for: a minute of changes, and what an idle proxy costs.

    sudo unshare -n .venv/bin/python docs/charts/steady.py --services 10000

The proxy is the one of `nftproxy run`, with its event loop, worker and pauses between syncs;
objects are decoded from bytes, as they come from a watch. What goes on in the source before that,
and health and metrics, are not in it.
"""

import argparse
import asyncio
import resource
import time
from pathlib import Path

from loguru import logger

from nftproxy.address import Family
from nftproxy.bench.offer import Offer
from nftproxy.bench.statistics import percentile
from nftproxy.bench.workload import Mix, node_settings
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import EndpointSlice, Node, Service, ServiceCIDR
from nftproxy.store import Store
from nftproxy.sync.proxy import Observer, Proxy
from nftproxy.sync.report import Report
from nftproxy.sync.table import Table

_STRIDE = 7919


class Lag(Observer):
    """How long changes wait: from their delivery to the end of the sync that wrote them."""

    def __init__(self) -> None:
        self.delivered: list[float] = []
        self.waits: list[float] = []
        self.syncs = 0
        self._taken = 0

    def taking(self) -> None:
        """Note that a sync takes what was delivered so far; it may take more, never less."""
        self._taken = len(self.delivered)

    async def synced(self, report: Report, seconds: float) -> None:  # noqa: ARG002
        """Add up the waits of what was written."""
        now = time.perf_counter()
        self.syncs += 1
        self.waits += [now - each for each in self.delivered[: self._taken]]
        del self.delivered[: self._taken]


class Watched(Table):
    """A table that says when a sync begins."""

    lag: Lag

    def sync(self, family: Family, own_addresses: object) -> Report:
        """Sync."""
        self.lag.taking()
        return super().sync(family, own_addresses)  # type: ignore[arg-type]


async def measure(offer: Offer, changes: int, seconds: float, idle: float) -> None:
    """Load, be idle, change, and print."""
    settings = node_settings()
    lag = Lag()
    with Kernel() as kernel:
        table = Watched(settings, Store(settings.families), kernel)
        table.lag = lag
        table.store.put(offer.workload().service_cidr())
        proxy = Proxy(table, lag)
        running = asyncio.create_task(proxy.run())
        for number in range(offer.services):
            load = offer.load(number)
            table.store.put(load.service)
            table.store.put(load.slices[0])
        for kind in (Service, EndpointSlice, ServiceCIDR, Node):
            table.store.delivered(kind)
        (runner,) = proxy.runners.values()
        began, used = time.perf_counter(), _used()
        proxy.changed()
        await runner.settled()
        took, used = time.perf_counter() - began, _used() - used
        print(
            f"{offer.services} services in the store: first sync {took:.2f} s, {used:.2f} s of "
            "processor time"
        )
        await asyncio.sleep(5)  # until chains out of use are deleted
        print(f"resident: {_status('VmRSS')} MB, peak {_status('VmHWM')} MB")
        if idle:
            used = _used()
            await asyncio.sleep(idle)
            print(f"idle: {100 * (_used() - used) / idle:.2f} % of a core")
        if seconds:
            await _change(offer, proxy, lag, changes, seconds)
        running.cancel()
        await asyncio.wait([running])


async def _change(offer: Offer, proxy: Proxy, lag: Lag, changes: int, seconds: float) -> None:
    store = proxy._store  # noqa: SLF001 - as the source of a daemon has it
    used, began, syncs = _used(), time.perf_counter(), lag.syncs
    (runner,) = proxy.runners.values()
    lag.delivered.clear()
    lag.waits.clear()
    done = 0
    while (now := time.perf_counter()) - began < seconds:
        for number in range(done, int((now - began) * changes)):
            piece = offer.load(
                number * _STRIDE % offer.services, 1 + number // offer.services % 2
            ).slices[0]
            store.put(piece)
            lag.delivered.append(time.perf_counter())
            done += 1
        proxy.changed()
        await asyncio.sleep(0.005)
    await runner.settled()
    waits = sorted(lag.waits)
    cpu, took = _used() - used, time.perf_counter() - began
    print(
        f"{done} changes in {took:.1f} s, {lag.syncs - syncs} syncs: {100 * cpu / took:.0f} % "
        "of a core, decoding included"
    )
    print(
        f"from delivery to committed: median {percentile(waits, 50) * 1e3:.0f} ms, "
        f"p99 {percentile(waits, 99) * 1e3:.0f} ms, worst {waits[-1] * 1e3:.0f} ms; "
        f"resident {_status('VmRSS')} MB"
    )


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _status(field: str) -> int:
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return round(int(line.split()[1]) * 1024 / 1e6)


def main() -> None:
    """Read options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=10000)
    parser.add_argument("--mix", type=Mix, default=Mix.PLAIN)
    parser.add_argument("--changes", type=int, default=1000, help="a second")
    parser.add_argument("--seconds", type=float, default=60, help="of changes")
    parser.add_argument("--idle", type=float, default=30, help="seconds")
    options = parser.parse_args()
    logger.remove()
    offer = Offer(options.services, mix=options.mix)
    asyncio.run(measure(offer, options.changes, options.seconds, options.idle))


if __name__ == "__main__":
    main()
