"""What a service costs as their number grows, for every kind of service.

No more each, on no kernel.

Four times as many services may take four times as long, with some room for a machine that others
use too; never sixteen times. The kernel has walked maps where nobody expected it (before 6.2 for
every verdict), so this is measured where it runs.

Not collected by `make test`: the virtual machines of `make test-kernels` run it.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.namespace import create, delete, enter
from nftproxy.model import Object
from nftproxy.store import Store
from nftproxy.sync.table import Table
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.world import settings, unique_name

GROWTH = 1.5  # how much more each service may cost
CHANGES = 15
ATTEMPTS = 5  # until one shows it: a machine that others use can only make it look worse
RANGES = ("10.0.0.0/8", "192.0.2.0/24")
AFFINITY = {
    "sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
}
LOCAL = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}

SIZES = (1000, 4000)
# Affinity has sets and chains of its own, and the kernel finds a set by walking along all of the
# table: at 4 000 such services each takes twice the processor time that it does at 1 000, nearly
# all of it in there. Until some hundreds of them, that does not show.
FEWER = (100, 400)

KINDS: dict[str, dict[str, Any]] = {
    "ClusterIP": {},
    "NodePort": {"node_port": 1},
    "load balancer": {"vips": 1, "node_port": 1},
    "load balancer, policy Local": {"vips": 1, "node_port": 1, **LOCAL},
    "source ranges": {"vips": 1, "loadBalancerSourceRanges": RANGES},
    "no endpoints": {"vips": 1, "node_port": 1},
    "affinity": AFFINITY,
}


def make(kind: str, number: int, endpoints: int) -> tuple[Object, ...]:
    """Service `number` of a kind, with a slice of so many endpoints, the first of them on this
    node.
    """
    high, low = divmod(number, 250)
    spec = dict(KINDS[kind])
    if spec.pop("vips", 0):
        spec["vips"] = [f"203.0.{high}.{low + 1}"]
    if "node_port" in spec:
        spec["node_port"] = 20000 + number
    found = [
        endpoint(f"10.244.{1 + index}.{1 + number % 250}", f"node{1 + index}")
        for index in range(endpoints)
    ]
    name = f"web{number}"
    return service(name, f"10.96.{high}.{low + 1}", **spec), endpoint_slice(name, found)


@contextlib.contextmanager
def new_table() -> Iterator[Table]:
    """A table of one family in a network namespace of its own."""
    name = unique_name()
    create(name)
    try:
        node = settings(families=[Family.IPv4])
        with enter(name), Kernel() as kernel:
            yield Table(node, Store(node.families), kernel)
    finally:
        delete(name)


def measure(kind: str, count: int) -> dict[str, float]:
    """Seconds for the first sync of so many services, and for one service to get one endpoint less
    or more.
    """
    before, after = (0, 1) if kind == "no endpoints" else (3, 2)
    with new_table() as table:
        for item in itertools.chain.from_iterable(
            make(kind, number, before) for number in range(count)
        ):
            table.store.put(item)
        first = seconds(table)
        changes = []
        for step in range(CHANGES):
            table.store.put(make(kind, step * count // CHANGES, after)[1])
            changes.append(seconds(table))
    return {"first sync": first, "change": statistics.median(changes)}


def seconds(table: Table) -> float:
    """How long a sync takes; it has something to do, and nothing is refused."""
    started = time.perf_counter()
    report = table.sync(Family.IPv4, ())
    took = time.perf_counter() - started
    assert report.written
    assert not report.refused
    return took


@pytest.mark.parametrize("kind", KINDS)
def test_cost_of_each_service(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    best: dict[int, dict[str, float]] = {}
    few, many = FEWER if kind == "affinity" else SIZES
    for _ in range(ATTEMPTS):
        for count in (few, many):
            found = measure(kind, count)
            best[count] = {
                what: min(took, best.get(count, found)[what]) for what, took in found.items()
            }
        growth = {what: took / many / (best[few][what] / few) for what, took in best[many].items()}
        if max(growth.values()) <= GROWTH:
            break
    with capsys.disabled():
        for what, factor in growth.items():
            costs = " and ".join(
                f"{took[what] * 1000:.1f} ms at {count}" for count, took in best.items()
            )
            print(
                f"\n{kind}, {what}: {costs} services; each costs {factor:.2f} times as much",
                flush=True,
            )
    assert max(growth.values()) <= GROWTH
