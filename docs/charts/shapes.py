"""What odd Services cost, against plain ones: ratios of one run.

    sudo unshare -n .venv/bin/python docs/charts/shapes.py

The code is that of `nftproxy run`, without the API server and without pauses between syncs; objects
are decoded before the clock starts. Shapes that are compared take turns, and a figure is a median.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from loguru import logger

from nftproxy.address import Family
from nftproxy.bench.workload import NODE, Workload, node_settings
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import EndpointSlice, Service
from nftproxy.node import memory
from nftproxy.store import Store
from nftproxy.sync.table import Table

Objects = list[Service | EndpointSlice]
SLICE: Final = 100  # endpoints, as the controller fills slices
CHANGES: Final = 12


class Sticky(Workload):
    """Services with ClientIP affinity."""

    def is_sticky(self, number: int) -> bool:  # noqa: ARG002
        """Every one."""
        return True


def pod(number: int) -> str:
    """Return the address of an endpoint."""
    return f"10.{128 + number // 65536}.{number // 256 % 256}.{number % 256}"


def slices(
    name: str, pods: list[int], ports: Iterable[dict[str, Any]] = ({"name": "http", "port": 8080},)
) -> list[EndpointSlice]:
    """Return the slices of a service; its first endpoint is on the node."""
    return [
        msgspec.convert(
            {
                "metadata": {
                    "name": f"{name}-{start}",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": "IPv4",
                "ports": list(ports),
                "endpoints": [
                    {
                        "addresses": [pod(number)],
                        "nodeName": f"node{number % 300 + 2}" if place or start else NODE,
                    }
                    for place, number in enumerate(pods[start : start + SLICE])
                ],
            },
            EndpointSlice,
        )
        for start in range(0, len(pods), SLICE)
    ]


def service(name: str, ip: str, ports: Iterable[dict[str, Any]], **spec: Any) -> Service:
    """Return a service."""
    whole = {"clusterIP": ip, "ports": list(ports), **spec}
    return msgspec.convert({"metadata": {"name": name}, "spec": whole}, Service)


def plain(count: int, kind: type[Workload] = Workload) -> Objects:
    """Return services with three endpoints each."""
    workload = kind(count)
    return [*workload.all_services(), *workload.all_slices()]


def sized(endpoints: int) -> Callable[[int], Objects]:
    """Return one service, as a function of how often an endpoint of its first slice changed."""
    web = service("web", "10.96.0.10", [{"name": "http", "port": 80}])

    def version(change: int) -> Objects:
        pods = list(range(endpoints))
        pods[min(endpoints, SLICE) - 1] = 100_000 + change
        found = slices("web", pods)
        return [web, *found] if change == 0 else [*found[:1]]

    return version


def many_ports(count: int) -> Callable[[int], Objects]:
    """Return a service of so many UDP ports with affinity, each time with one endpoint more.

    Another number of endpoints is the dearest change, because it needs other chains.
    """
    ports = [{"name": f"p{n}", "port": 1000 + n, "protocol": "UDP"} for n in range(count)]
    targets = [{**port, "port": 20_000 + n} for n, port in enumerate(ports)]
    many = service("many", "10.96.0.10", ports, sessionAffinity="ClientIP")

    def version(change: int) -> Objects:
        return [many, *slices("many", list(range(change + 3)), targets)]

    return version


def uneven(count: int) -> Objects:
    """Return services of which none has as many endpoints as another."""
    found: Objects = []
    for number in range(count):
        ip, name = f"10.96.{number // 250}.{number % 250 + 2}", f"uneven-{number}"
        found.append(service(name, ip, [{"name": "http", "port": 80}]))
        found += slices(name, list(range(number * count, number * count + number + 1)))
    return found


@contextmanager
def table() -> Iterator[Table]:
    """Lend a proxy of this namespace, with an empty memory."""
    settings = node_settings()
    with Kernel() as kernel:
        yield Table(settings, Store(settings.families), kernel)


def deliver(
    to: Table, objects: Objects, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, int]:
    """Deliver objects and sync; return the seconds that took, and the elements written."""
    began = clock()
    for item in objects:
        to.store.put(item)
    written = 0
    while True:
        report = to.sync(Family.IPv4, [])
        written += report.written
        if not report.postponed:
            return clock() - began, written


def first(objects: Objects, clock: Callable[[], float] = time.perf_counter) -> tuple[float, int]:
    """Return the seconds and the elements of a first sync; afterwards there is no table."""
    gc.collect()
    with table() as made:
        try:
            return deliver(made, objects, clock)
        finally:
            made.kernel.delete_table()


def changing(version: Callable[[int], Objects]) -> float:
    """Return the seconds of a change, in the median."""
    with table() as made:
        try:
            deliver(made, version(0))
            deliver(made, version(1))
            seconds: list[float] = []
            for objects in [version(number) for number in range(2, CHANGES)]:
                if made.untidy:  # as in quiet times
                    made.tidy()
                seconds.append(deliver(made, objects)[0])
            return statistics.median(seconds)
        finally:
            made.kernel.delete_table()


def workload(kind: type[Workload], count: int) -> Callable[[int], Objects]:
    """Return so many services, as a function of how often an endpoint of one of them changed."""
    return lambda change: plain(count, kind) if change == 0 else [kind(count).slice(7, change)]


def restart(count: int) -> tuple[float, float]:
    """Return the seconds of a first sync and of a restart with nothing changed."""
    objects = plain(count)
    with table() as made:
        before, _ = deliver(made, objects)
    with table() as made:
        again, written = deliver(made, objects)
        assert not written  # noqa: S101 - nothing changed
        made.kernel.delete_table()
    return before, again


def say(what: str, value: float, other: float) -> None:
    """Print a line with a ratio."""
    print(f"{what:66} {value * 1e3:9.2f} {other * 1e3:9.2f} ms {value / other:6.2f}x", flush=True)


def turns(repeat: int, *works: Callable[[], float]) -> list[float]:
    """Return the median of each of some works, which take turns."""
    rounds = [[work() for work in works] for _ in range(repeat)]
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--restart", type=int, default=50_000, help="services")
    repeat = (options := parser.parse_args()).repeat
    logger.remove()
    memory.collect_seldom()

    def each(objects: Objects, clock: Callable[[], float] = time.perf_counter) -> float:
        seconds, written = first(objects, clock)
        return seconds / written * 1000

    large, small = turns(repeat, lambda: changing(sized(10_000)), lambda: changing(sized(10)))
    say("one endpoint changes in a service with 10 000, with 10", large, small)
    many, few = turns(repeat, lambda: changing(many_ports(1000)), lambda: changing(many_ports(300)))
    say("a service of 1 000, of 300 ClientIP ports changes", many, few)
    odd, even = turns(repeat, lambda: each(uneven(300)), lambda: each(plain(15_000)))
    say("first sync, 1 000 elements, 300 numbers of endpoints, 15 000 plain", odd, even)
    cpu = time.process_time
    odd, even = turns(repeat, lambda: each(uneven(300), cpu), lambda: each(plain(15_000), cpu))
    say("... processor time", odd, even)
    works = [(lambda kind=kind: first(plain(500, kind))[0]) for kind in (Sticky, Workload)]
    say("first sync of 500 ClientIP services, of 500 plain ones", *turns(repeat, *works))
    works = [(lambda kind=kind: changing(workload(kind, 500))) for kind in (Sticky, Workload)]
    say("one endpoint changes among 500 ClientIP services, 500 plain ones", *turns(repeat, *works))
    both = [restart(options.restart) for _ in range(repeat)]
    before, again = (statistics.median(each) for each in zip(*both, strict=True))
    say(f"restart, first sync of {options.restart}", again, before)


if __name__ == "__main__":
    main()
