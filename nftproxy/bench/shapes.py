"""What odd Services cost beside plain ones, with nftproxy alone: ratios of one run.

The code is that of `nftproxy run`, without the API server and without pauses between syncs; objects
are decoded before the clock starts. Shapes that are compared take turns, and a figure is a median.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from nftproxy.address import Family
from nftproxy.bench.bed import scratch
from nftproxy.bench.workload import NODE, Workload, node_settings
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab import namespace
from nftproxy.model import EndpointSlice, Service
from nftproxy.node import memory
from nftproxy.store import Store
from nftproxy.sync.table import Table

Objects = list[Service | EndpointSlice]
Version = Callable[[int], Objects]
"""What a source delivers: everything at first (0), then what a change with that number delivers."""
Clock = Callable[[], float]
SLICE: Final = 100  # endpoints, as the controller fills slices


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many of each, and how many changes are timed for one figure."""

    endpoints: tuple[int, int]  # of one Service: many, few
    ports: tuple[int, int]  # with ClientIP affinity, of one Service: many, few
    counts: int  # Services, none of which has as many endpoints as another
    even: int  # Services beside them
    sticky: int  # Services with ClientIP affinity
    restart: int  # Services
    changes: int


FULL: Final = Sizes((10_000, 10), (1000, 300), 300, 15_000, 500, 50_000, 10)
QUICK: Final = Sizes((1000, 10), (100, 30), 100, 1700, 100, 2000, 4)


class Compared(NamedTuple):
    """The seconds that two shapes took."""

    title: str
    odd: float
    plain: float


class Pair(NamedTuple):
    """Two shapes to compare, each as a function that returns seconds."""

    title: str
    odd: Callable[[], float]
    plain: Callable[[], float]


def pairs(sizes: Sizes) -> list[Pair]:
    """Return what is compared."""
    many, few = sizes.endpoints
    most, fewer = sizes.ports

    def first_of(objects: Callable[[], Objects], clock: Clock) -> Callable[[], float]:
        return lambda: first(objects(), clock).each

    def both(what: str, clock: Clock) -> Pair:
        return Pair(
            f"{what} of {sizes.counts} numbers of endpoints, of {sizes.even} plain Services, each "
            "element",
            first_of(lambda: uneven(sizes.counts), clock),
            first_of(lambda: plain(sizes.even), clock),
        )

    return [
        Pair(
            f"one endpoint changes in a Service with {many}, with {few}",
            lambda: changing(sized(many), sizes.changes),
            lambda: changing(sized(few), sizes.changes),
        ),
        Pair(
            f"one endpoint more for {most}, for {fewer} ClientIP ports, each port",
            lambda: changing(many_ports(most), sizes.changes) / most,
            lambda: changing(many_ports(fewer), sizes.changes) / fewer,
        ),
        both("first sync", time.perf_counter),
        both("processor time", time.process_time),
        Pair(
            f"first sync of {sizes.sticky} ClientIP Services, of plain ones",
            lambda: first(plain(sizes.sticky, Sticky)).seconds,
            lambda: first(plain(sizes.sticky)).seconds,
        ),
        Pair(
            f"one endpoint changes among {sizes.sticky} ClientIP Services, among plain ones",
            lambda: changing(alike(Sticky, sizes.sticky), sizes.changes),
            lambda: changing(alike(Workload, sizes.sticky), sizes.changes),
        ),
        Pair(
            f"restart with {sizes.restart} Services, first sync",
            lambda: restart(plain(sizes.restart)),
            lambda: first(plain(sizes.restart)).seconds,
        ),
    ]


def compare(sizes: Sizes, repeat: int, step: Callable[[str], None]) -> Iterator[Compared]:
    """Yield what each comparison measures; `step` is called with its title before each work."""
    memory.collect_seldom()
    for title, odd, other in pairs(sizes):
        seconds: dict[Callable[[], float], list[float]] = {odd: [], other: []}
        for _ in range(repeat):
            for work, measured in seconds.items():
                step(title)
                measured.append(work())
        yield Compared(title, *map(statistics.median, seconds.values()))


# ---- shapes --------------------------------------------------------------------------------------


class Sticky(Workload):
    """Services with ClientIP affinity."""

    def is_sticky(self, number: int) -> bool:  # noqa: ARG002
        """Every one."""
        return True


def plain(count: int, kind: type[Workload] = Workload) -> Objects:
    """Return services with three endpoints each."""
    workload = kind(count)
    return [*workload.all_services(), *workload.all_slices()]


def alike(kind: type[Workload], count: int) -> Version:
    """Return services of which one has another endpoint after each change."""
    return lambda change: plain(count, kind) if change == 0 else [kind(count).slice(7, change)]


def sized(endpoints: int) -> Version:
    """Return one service, with another endpoint in its first slice after each change."""
    web = _service("web", "10.96.0.10", [{"name": "http", "port": 80}])

    def version(change: int) -> Objects:
        pods = list(range(endpoints))
        pods[min(endpoints, SLICE) - 1] = 100_000 + change
        found = _slices("web", pods)
        return [web, *found] if change == 0 else [*found[:1]]

    return version


def many_ports(count: int) -> Version:
    """Return a service of UDP ports with affinity, with one endpoint more after each change.

    Another number of endpoints is the dearest change, because it needs other chains.
    """
    ports = [{"name": f"p{n}", "port": 1000 + n, "protocol": "UDP"} for n in range(count)]
    targets = [{**port, "port": 20_000 + n} for n, port in enumerate(ports)]
    many = _service("many", "10.96.0.10", ports, sessionAffinity="ClientIP")

    def version(change: int) -> Objects:
        return [many, *_slices("many", list(range(change + 3)), targets)]

    return version


def uneven(count: int) -> Objects:
    """Return services of which none has as many endpoints as another."""
    found: Objects = []
    for number in range(count):
        ip, name = f"10.96.{number // 250}.{number % 250 + 2}", f"uneven-{number}"
        found.append(_service(name, ip, [{"name": "http", "port": 80}]))
        found += _slices(name, list(range(number * count, number * count + number + 1)))
    return found


def _service(name: str, ip: str, ports: Iterable[dict[str, Any]], **spec: Any) -> Service:
    whole = {"clusterIP": ip, "ports": list(ports), **spec}
    return msgspec.convert({"metadata": {"name": name}, "spec": whole}, Service)


def _slices(
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
                        "addresses": [f"10.{128 + pod // 65536}.{pod // 256 % 256}.{pod % 256}"],
                        "nodeName": f"node{pod % 300 + 2}" if place or start else NODE,
                    }
                    for place, pod in enumerate(pods[start : start + SLICE])
                ],
            },
            EndpointSlice,
        )
        for start in range(0, len(pods), SLICE)
    ]


# ---- measuring -----------------------------------------------------------------------------------


class Synced(NamedTuple):
    """What a sync took, and how many elements it wrote."""

    seconds: float
    written: int

    @property
    def each(self) -> float:
        """Seconds for each element."""
        return self.seconds / self.written


def first(objects: Objects, clock: Clock = time.perf_counter) -> Synced:
    """Measure a first sync."""
    gc.collect()
    with scratch() as name, _proxy(name) as table:
        return _deliver(table, objects, clock)


def changing(version: Version, changes: int) -> float:
    """Return the seconds that a change takes, in the median of some."""
    with scratch() as name, _proxy(name) as table:
        _deliver(table, version(0))
        _deliver(table, version(1))
        seconds: list[float] = []
        for objects in [version(number + 2) for number in range(changes)]:
            if table.untidy:  # as in quiet times
                table.tidy()
            seconds.append(_deliver(table, objects).seconds)
        return statistics.median(seconds)


def restart(objects: Objects) -> float:
    """Return the seconds of a restart with nothing changed."""
    gc.collect()
    with scratch() as name:
        with _proxy(name) as table:
            _deliver(table, objects)
        del table
        with _proxy(name) as table:
            again = _deliver(table, objects)
        assert not again.written  # noqa: S101 - nothing changed
        return again.seconds


@contextmanager
def _proxy(name: str) -> Iterator[Table]:
    """Lend a proxy of a namespace, with an empty memory; the table stays."""
    settings = node_settings()
    with namespace.enter(name):
        kernel = Kernel()
    with kernel:
        yield Table(settings, Store(settings.families), kernel)


def _deliver(table: Table, objects: Objects, clock: Clock = time.perf_counter) -> Synced:
    """Deliver objects and sync until nothing is postponed."""
    began, written = clock(), 0
    for item in objects:
        table.store.put(item)
    while True:
        report = table.sync(Family.IPv4, [])
        written += report.written
        if not report.postponed:
            return Synced(clock() - began, written)
