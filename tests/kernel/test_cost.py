"""What a change costs, counted.

Elements, transactions, commands, bytes, kernel objects, function calls. No clock decides here.

A figure that grows is a regression, also where a machine is fast enough not to show it. Whoever
lowers one lowers it here.
"""

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from msgspec import structs

from nftproxy.address import Family
from nftproxy.bench.workload import Mix, Workload, node_settings
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import EndpointSlice, Object, Service
from nftproxy.node.memory import uncollected
from nftproxy.store import Store
from nftproxy.sync.table import Table
from nftproxy.table import netlink
from nftproxy.table.netlink import Elements
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import Watched, bare_table, new_namespace, table_in, watched

BYTES = 90  # of JSON at most for each element, and for each command
ADDRESSES = {
    Family.IPv4: {
        "ip": "10.96.0.{}",
        "vip": "203.0.113.{}",
        "pod": "10.244.1.{}",
        "ranges": ("198.51.100.0/24", "192.0.2.0/25"),
    },
    Family.IPv6: {
        "ip": "fd00:10:96::{}",
        "vip": "fd00:beef::{}",
        "pod": "fd00:244:1::{}",
        "ranges": ("fd01::/32", "fd02::/48"),
    },
}


@dataclass(frozen=True)
class Kind:
    """A kind of service, and what it costs as elements/transactions/commands+transactions for
    chains; `objects` are its own.
    """

    new: str  # with three endpoints, of which one is on the node
    replaced: str  # one endpoint by another
    more: str  # a fourth one
    fewer: str  # three again
    deleted: str
    objects: tuple[int, int] = (0, 0)
    spec: tuple[str, ...] = ()


CLIENT_IP, POLICY_LOCAL = "client-ip", "external-local"
KINDS = {
    #                                            new     replaced   more      fewer    deleted
    "ClusterIP": Kind("6/1/4", "2/1/2", "3/1/3", "3/2/3", "6/2/4"),
    "UDP": Kind("6/1/4", "2/1/2", "3/1/3", "3/2/3", "6/2/4", spec=("udp",)),
    "internal Local": Kind("4/1/4", "0/0/0", "0/0/0", "0/0/0", "4/2/4", spec=("internal-local",)),
    "ClientIP": Kind("14/1/8+1", "6/1/6", "5/1/5+1", "5/2/5", "14/2/8", (2, 2), spec=(CLIENT_IP,)),
    "external IP": Kind("10/1/4", "4/1/2", "6/1/3", "6/2/3", "10/2/4", spec=("external-ip",)),
    "NodePort": Kind("10/1/6", "4/1/4", "6/1/6", "6/2/6", "10/2/6", spec=("node-port",)),
    "NodePort, Local": Kind(
        "11/1/7", "4/1/4", "6/1/6", "6/2/6", "11/2/7", spec=("node-port", POLICY_LOCAL)
    ),
    "LoadBalancer": Kind("14/1/6", "6/1/4", "9/1/6", "9/2/6", "14/2/6", spec=("node-port", "vip")),
    "source ranges": Kind(
        "17/2/12", "6/1/4", "9/1/6", "9/2/6", "17/2/9", spec=("node-port", "vip", "ranges")
    ),
    "LoadBalancer, Local": Kind(
        "16/1/8", "6/1/4", "9/1/6", "9/2/6", "16/2/8", spec=("node-port", "vip", POLICY_LOCAL)
    ),
    "everything": Kind(
        "29/1/15+1",
        "10/1/8",
        "11/1/8+1",
        "11/2/8",
        "29/2/15",
        (7, 4),
        spec=("node-port", "vip", POLICY_LOCAL, CLIENT_IP),
    ),
}


def objects(kind: Kind, number: int, family: Family, *pods: int) -> tuple[Service, EndpointSlice]:
    """A service of a kind, with these endpoints; the first is on the node."""
    known = ADDRESSES[family]
    vip = str(known["vip"]).format(number)
    spec: dict[str, Any] = {}
    words: dict[str, dict[str, Any]] = {
        "udp": {"protocol": "UDP"},
        "internal-local": {"internalTrafficPolicy": "Local"},
        CLIENT_IP: {"sessionAffinity": "ClientIP"},
        "external-ip": {"externalIPs": [vip]},
        "node-port": {"node_port": 30000 + number},
        "vip": {"vips": [vip]},
        "ranges": {"loadBalancerSourceRanges": list(known["ranges"])},
        POLICY_LOCAL: {"externalTrafficPolicy": "Local"},
    }
    for word in kind.spec:
        spec |= words[word]
    protocol = spec.get("protocol", "TCP")
    found = [
        endpoint(str(known["pod"]).format(pod), "node2" if place else "node1")
        for place, pod in enumerate(pods)
    ]
    name = f"web{number}"
    return (
        service(name, str(known["ip"]).format(number), **spec),
        endpoint_slice(name, found, protocol=protocol, family=family),
    )


@contextmanager
def counted(table: Table) -> Iterator[Callable[..., str]]:
    """Yield a function that syncs and returns what that took.

    Every transaction must be known to the report.
    """
    sent: list[str] = []

    def sync() -> str:
        sent.clear()
        (family,) = table.settings.families
        report = table.sync(family, [])
        assert not report.refused
        assert not report.read_back
        json_texts = [text for text in sent if text.startswith("{")]
        commands = sum(len(json.loads(text)["nftables"]) for text in json_texts)
        assert len(json_texts) == report.transactions
        assert sum(map(len, json_texts)) <= BYTES * (report.written + commands)
        made = len(sent) - len(json_texts)
        return f"{report.written}/{report.transactions}/{commands}" + (f"+{made}" if made else "")

    with watched(table.kernel, sent.append):
        yield sync


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_change_takes(kind: Kind, family: Family) -> None:
    """As elements/transactions/commands; an unchanged object takes nothing, and nothing is read."""
    others = [
        item
        for number, pods in ((1, (2, 3, 4)), (2, (2, 3, 4, 5)))
        for item in objects(kind, number, family, *pods)
    ]
    with bare_table(*others, families=[family]) as table:
        # Others have made what is shared: picks, and sets of allowed sources
        table.sync(family, [])
        shapes = len(table.kernel.chains), len(table.kernel.sets)
        with counted(table) as sync:
            made, piece = objects(kind, 3, family, 6, 7, 8)
            table.store.put(made)
            table.store.put(piece)
            assert sync() == kind.new
            own = len(table.kernel.chains) - shapes[0], len(table.kernel.sets) - shapes[1]
            assert own == kind.objects
            reads = _reads(table.kernel)
            steps = {"replaced": (6, 7, 9), "more": (6, 7, 9, 10), "fewer": (6, 7, 9)}
            for step, pods in steps.items():
                piece = objects(kind, 3, family, *pods)[1]
                table.store.put(piece)
                assert sync() == getattr(kind, step), step
                table.store.put(made)
                table.store.put(piece)
                assert sync() == "0/0/0"
            table.store.remove(Service, made.metadata.key)
            table.store.remove(EndpointSlice, piece.metadata.key)
            assert sync() == kind.deleted
            looked_at = {where.partition("-")[0] for where in reads}
            memories = {f"affinity{family.digit}"} if CLIENT_IP in kind.spec else set()
            if memories and POLICY_LOCAL in kind.spec:
                memories.add(f"local_affinity{family.digit}")
            assert looked_at == memories, (
                "remembered clients are looked at when an endpoint goes; nothing else is"
            )


def _reads(kernel: Kernel) -> list[str]:
    """Note what every request for a dump from now on asks for: the name of a set, or nothing."""
    found: list[str] = []
    for channel in (kernel._reader._channel, kernel._second._channel):
        dumps = channel._dumps

        def noted(
            kind: int, requests: list[bytes], *more: Any, dumps: Callable[..., Any] = dumps
        ) -> Any:
            found.extend(netlink.text(netlink.parts(r).get(Elements.SET, b"")) for r in requests)
            return dumps(kind, requests, *more)

        channel._dumps = noted  # type: ignore[method-assign,assignment]
    return found


@contextmanager
def cluster(services: int) -> Iterator[tuple[Table, Workload]]:
    """A table of a mixed cluster, synced, that has seen a change of each kind."""
    workload = Workload(services, mix=Mix.MIXED)
    with new_namespace() as netns, table_in(netns, chosen=node_settings()) as table:
        put(table.store, workload)
        table.sync(Family.IPv4, [])
        for number in NUMBERS.values():
            table.store.put(workload.slice(number, 1))
            table.sync(Family.IPv4, [])
        yield table, workload


def put(store: Store, workload: Workload) -> None:
    for number in range(workload.services):
        for item in (workload.service(number), workload.slice(number)):
            store.put(item)


def function_calls(work: Callable[[], object]) -> int:
    """Count the Python functions that are called meanwhile, but for those that the garbage of
    earlier tests brings along.
    """
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG001
        nonlocal count
        count += event == "call"

    gc.collect()
    with uncollected():
        sys.setprofile(profile)
        try:
            work()
        finally:
            sys.setprofile(None)
    return count


NUMBERS = {"plain": 1, "external": 5, "sticky": 7}  # which of a mixed workload is what


def test_a_change_costs_the_same_in_any_cluster() -> None:
    """In functions called, in memory and in bytes sent.

    Nothing is done that is proportional to the cluster.
    """
    found: list[dict[str, tuple[int, int]]] = []
    peaks: list[int] = []
    for services in (30, 600):
        with cluster(services) as (table, workload):
            sent = 0

            def counting(text: str) -> None:
                nonlocal sent
                sent += len(text)

            table.kernel.library = Watched(table.kernel, counting)
            costs = {}
            for what, number in NUMBERS.items():
                changed: Object = workload.slice(number, 2)

                def change(item: Object = changed, table: Table = table) -> None:
                    table.store.put(item)
                    assert table.sync(Family.IPv4, []).written

                sent = 0
                costs[what] = function_calls(change), sent
            found.append(costs)
            tracemalloc.start()
            try:
                table.store.put(workload.slice(1, 3))
                table.sync(Family.IPv4, [])
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    assert found[0] == found[1]
    assert peaks[1] < peaks[0] + 20_000, "bytes"


WHOLE = {"nftproxy.io/affinity-scope": "service"}


def many_ports(
    count: int, *pods: int, annotations: dict[str, str] | None = None
) -> tuple[Service, EndpointSlice]:
    """A service with affinity and so many UDP ports, each with endpoints of another number."""
    ports = [{"name": f"p{n}", "port": 1000 + n, "protocol": "UDP"} for n in range(count)]
    targets = [{**port, "port": 20000 + n} for n, port in enumerate(ports)]
    return (
        service(
            "many",
            "10.96.0.9",
            ports=ports,
            sessionAffinity="ClientIP",
            annotations=annotations or {},
        ),
        endpoint_slice("many", [endpoint(f"10.244.1.{pod}") for pod in pods], ports=targets),
    )


@pytest.mark.parametrize("annotations", [{}, WHOLE], ids=["port", "service"])
def test_a_service_of_many_ports_is_linear(annotations: dict[str, str]) -> None:
    """Twice the ports, twice the calls, and no more transactions; and how many a port takes."""
    calls: dict[str, list[int]] = {}
    for count in (60, 120):
        with bare_table() as table:
            table.sync(Family.IPv4, [])
            steps = {"new": (2, 3), "replaced": (2, 4), "more": (2, 4, 5), "fewer": (2, 4)}
            for step, pods in steps.items():
                for item in many_ports(count, *pods, annotations=annotations):
                    table.store.put(item)
                sent: list[str] = []
                with watched(table.kernel, sent.append):
                    used = function_calls(lambda table=table: table.sync(Family.IPv4, []))  # type: ignore[misc]
                assert len(sent) <= 3, "chains and sets; elements; those that go late"
                calls.setdefault(step, []).append(used)
    for few, many in calls.values():
        assert many < 2.05 * few
        assert (many - few) / 60 < 420


def test_ports_that_share_a_memory_have_one_object_each() -> None:
    """The chain that looks there; what remembers, memory and members are the Service's."""
    with bare_table() as table:
        table.sync(Family.IPv4, [])
        for item in many_ports(40, 2, 3, annotations=WHOLE):
            table.store.put(item)
        table.sync(Family.IPv4, [])
        own = [name for name in table.kernel.chains | table.kernel.sets if "default/many" in name]
        assert len(own) == 40 + 3


def many_slices(count: int) -> list[EndpointSlice]:
    """The slices of a service with 100 endpoints in each."""
    return [
        endpoint_slice(
            "web",
            [endpoint(f"10.{128 + n // 250}.{n % 250}.{pod}", "node2") for pod in range(100)],
            name=f"web-{n}",
        )
        for n in range(count)
    ]


def test_a_change_costs_the_same_in_a_service_of_any_size() -> None:
    """In functions called and in bytes sent: only the slice that changed is looked at."""
    found: list[tuple[int, int]] = []
    for count in (5, 40):
        with bare_table(service(), *many_slices(count)) as table:
            table.sync(Family.IPv4, [])
            (whole,) = many_slices(1)
            (other,) = endpoint_slice("web", [endpoint("10.9.0.1")]).endpoints or ()
            replaced = structs.replace(whole, endpoints=(other, *(whole.endpoints or ())[1:]))
            for item in (replaced, whole):  # the first change numbers the slots
                table.store.put(item)
                table.sync(Family.IPv4, [])
            sent: list[str] = []

            def change(table: Table = table, item: EndpointSlice = replaced) -> None:
                table.store.put(item)
                assert table.sync(Family.IPv4, []).written == 2

            with watched(table.kernel, sent.append):
                found.append((function_calls(change), sum(map(len, sent))))
    (calls, sent_bytes), (more_calls, more_bytes) = found
    assert more_calls - calls < 35 * 3, "for each slice more"
    assert more_calls < 1.5 * calls
    assert more_bytes - sent_bytes < 10


def test_a_first_load_is_linear() -> None:
    """Twice the services, twice the calls; and how many calls one takes."""
    calls = {}
    for services in (200, 400):
        workload = Workload(services)
        with new_namespace() as netns, table_in(netns, chosen=node_settings()) as table:
            put(table.store, workload)
            calls[services] = function_calls(lambda table=table: table.sync(Family.IPv4, []))  # type: ignore[misc]
    each = (calls[400] - calls[200]) / 200
    assert calls[400] < 2 * calls[200]
    assert each < 175


def test_a_restart_reads_each_set_once_and_writes_nothing() -> None:
    workload = Workload(300, mix=Mix.MIXED)
    with new_namespace() as netns:
        with table_in(netns, chosen=node_settings()) as table:
            put(table.store, workload)
            table.sync(Family.IPv4, [])
        with table_in(netns, chosen=node_settings()) as table:
            put(table.store, workload)
            reads = _reads(table.kernel)
            sent: list[str] = []
            reports: list[Any] = []
            with watched(table.kernel, sent.append):
                calls = function_calls(lambda: reports.append(table.sync(Family.IPv4, [])))
            assert reports[0].read_back
            assert (reports[0].written, sent) == (0, [])
            assert calls < 300 * 285
            sets = table.kernel.sets
            assert len(reads) <= len(sets) + 8, "the table, its chains, its sets; then each set"
