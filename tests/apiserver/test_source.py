"""The four watches together: their order, what they ask for, and how they end.

Those that something befalls (in `following`) end by comparing the store and the kernel's elements
with those of a fresh start.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.model import Node
from nftproxy.sources.apiserver import connect
from nftproxy.sources.kubesource import KubeSource
from nftproxy.sync.table import Table
from tests.support.fake_apiserver import (
    TIMEOUT,
    Document,
    Exchange,
    FakeApiServer,
    recorded,
    refused,
)
from tests.support.mirror import Synced, Time, contents, logged, same
from tests.support.tables import bare_table


def node(name: str = "node1", **spec: Any) -> Document:
    return {"metadata": {"name": name}, "spec": spec}


class Running:
    """A source at work, in a world where pauses take no time unless told otherwise."""

    def __init__(self, server: FakeApiServer, table: Table, *, real_time: bool = False) -> None:
        self.server = server
        self.store = table.store
        self.synced = Synced(table)
        self.time = Time(server.condition)
        self.nodes: list[Node | None] = []
        self.changes = 0
        self.source = KubeSource(
            connect("", server.url),
            self.store,
            "node1",
            changed=self._changed,
            node_changed=self._node_changed,
            environment=None if real_time else self.time.environment,
        )
        self.source.start()

    def until(self, what: Any) -> None:
        with self.server.condition:
            assert self.server.condition.wait_for(what, TIMEOUT), "waited in vain"

    def _changed(self) -> None:
        assert self.store.complete, "contract 1.3.6"
        self.synced.sync()
        with self.server.condition:
            self.changes += 1
            self.server.condition.notify_all()

    def _node_changed(self, item: Node | None) -> None:
        with self.server.condition:
            self.nodes.append(item)
            self.server.condition.notify_all()


@contextmanager
def working(server: FakeApiServer, *, real_time: bool = False) -> Iterator[Running]:
    """Run a source for the length of a block."""
    with bare_table(families=Family) as table:
        running = Running(server, table, real_time=real_time)
        try:
            yield running
        finally:
            running.source.stop()


@contextmanager
def following(server: FakeApiServer) -> Iterator[Running]:
    """The same; at the end, compare what it left in store and kernel with what somebody who starts
    then makes of it.

    The server behaves again by then. Nothing is synced for the sake of the comparison.
    """
    with working(server) as running:
        yield running
        server.behave()
        with working(server) as fresh:
            fresh.until(lambda: fresh.changes and fresh.store._cidrs)
            running.until(lambda: contents(running.store) == contents(fresh.store))
            for each in (running, fresh):
                each.source.stop()
            same(running.synced.left(), fresh.synced.left())


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as server:
        server.load("services", "services-list.json")
        server.load("endpointslices", "endpointslices-list.json")
        server.load("nodes", "nodes-list.json")
        server.load("servicecidrs", "servicecidrs-list.json")
        yield server


@pytest.fixture
def running(server: FakeApiServer) -> Iterator[Running]:
    with following(server) as running:
        yield running


@pytest.mark.contract("1.1.1", "1.1.2", "1.1.3", "1.1.4", "1.1.8")
def test_what_is_asked_for(server: FakeApiServer, running: Running) -> None:
    running.until(
        lambda: len({each.resource for each in server.requests}) == 4 and running.store.complete
    )
    asked = {
        each.resource: {key: value for key, value in each.query.items() if key.endswith("Selector")}
        for each in server.requests
    }
    assert asked == {
        "services": {
            "labelSelector": "!service.kubernetes.io/service-proxy-name",
            "fieldSelector": "spec.clusterIP!=None",
        },
        "endpointslices": {"labelSelector": "!service.kubernetes.io/headless"},
        "nodes": {"fieldSelector": "metadata.name=node1"},
        "servicecidrs": {},
    }


@pytest.mark.contract("1.2.1")
def test_the_node_comes_first(server: FakeApiServer) -> None:
    answer = threading.Event()

    def slowly(exchange: Exchange) -> None:
        exchange.server.expect("nodes", refused(503), times=3)
        answer.wait(TIMEOUT)
        refused(503)(exchange)

    server.expect("nodes", slowly)
    with following(server) as running:
        running.until(lambda: len(server.asked("nodes")) == 1)
        assert len(server.requests) == 1
        answer.set()
        running.until(lambda: running.store.complete)
        order = [each.resource for each in server.requests]
        assert order[:5] == ["nodes"] * 5, "nothing else before an answer"
        assert running.source.wait_for_node(0) == running.store.node


@pytest.mark.contract("1.2.5", "10.2.1")
def test_denied_servicecidrs_stop_nothing(server: FakeApiServer) -> None:
    server.expect("servicecidrs", recorded("list-forbidden.http"), times=10**9)
    with logged() as lines, following(server) as running:
        running.until(lambda: running.changes)
        running.until(lambda: len(server.asked("servicecidrs")) > 5)
        server.delete("services", "web", "demo")
        running.until(lambda: not any(str(key) == "demo/web" for key in contents(running.store)))
    assert len([line for line in lines if line.startswith("WARNING")]) == 1


@pytest.mark.contract("1.2.4", "1.3.6")
@pytest.mark.parametrize("late", ["services", "endpointslices"])
def test_nothing_is_requested_before_all_is_delivered(server: FakeApiServer, late: str) -> None:
    """`Running` asserts it at each call."""
    server.expect(late, refused(503), times=20)
    with following(server) as running:
        running.until(lambda: running.changes)
        assert len(server.asked(late)) > 20


class TestWaitForNode:
    @pytest.mark.contract("1.2.2")
    def test_one_that_does_not_exist(self, server: FakeApiServer) -> None:
        server.delete("nodes", "node1")
        with logged() as lines, working(server) as running:
            assert running.source.wait_for_node(0.01) is None
        assert "WARNING the API server knows no Node node1" in lines

    @pytest.mark.contract("1.2.3")
    def test_one_that_becomes_usable(self, server: FakeApiServer) -> None:
        server.put("nodes", node())
        with working(server) as running:
            running.until(lambda: running.store.complete)
            assert (
                found := running.source.wait_for_node(0, lambda node: bool(node.spec.pod_cidrs))
            )
            assert found.spec.pod_cidrs is None, "the last seen, although it is not usable"
            changing = threading.Thread(
                target=server.put, args=("nodes", node(podCIDRs=["10.244.1.0/24"]))
            )
            changing.start()
            assert (
                found := running.source.wait_for_node(
                    TIMEOUT, lambda node: bool(node.spec.pod_cidrs)
                )
            )
            assert found.spec.pod_cidrs == ("10.244.1.0/24",)
            changing.join()

    def test_stopped(self, server: FakeApiServer) -> None:
        server.expect("nodes", refused(503), times=10**9)
        with working(server) as running:
            stopping = threading.Timer(0, running.source.stop)
            stopping.start()
            assert running.source.wait_for_node(TIMEOUT) is None
            stopping.join()


@pytest.mark.contract("1.4.4")
def test_a_deleted_node_is_reported(server: FakeApiServer) -> None:
    with following(server) as running:
        running.until(lambda: running.nodes)
        server.delete("nodes", "node1")
        running.until(lambda: running.nodes[-1] is None)
        server.put("nodes", node(podCIDRs=["10.244.9.0/24"]))
        running.until(lambda: len(running.nodes) == 3)


@pytest.mark.contract("1.4.4")
def test_a_node_that_was_deleted_during_an_outage_is_reported(server: FakeApiServer) -> None:
    with working(server) as running:
        running.until(lambda: running.nodes)
        server.shut()
        server.delete("nodes", "node1")
        server.listen()
        running.until(lambda: running.nodes[-1] is None)


@pytest.mark.contract("1.4.1", "1.4.2")
def test_node_changes_are_told_once(server: FakeApiServer, running: Running) -> None:
    running.until(lambda: running.changes)
    changes = running.changes
    server.put("nodes", node(podCIDRs=["10.244.1.0/24"]))
    server.put("nodes", node(podCIDRs=["10.244.1.0/24"]) | {"status": {"phase": "of the moon"}})
    server.put(
        "nodes", {"metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "a"}}}
    )
    running.until(lambda: running.store._zone == "a")
    assert [each and each.spec.pod_cidrs for each in running.nodes[1:]] == [
        ("10.244.1.0/24",),
        None,
    ]
    running.until(lambda: running.changes > changes)


@pytest.mark.parametrize("moment", ["quiet", "pausing", "node_unanswered"])
def test_stop_is_prompt(server: FakeApiServer, moment: str) -> None:
    """Whatever the threads wait for. They would wait for minutes, with a clock that is real."""
    match moment:
        case "pausing":
            for resource in ("services", "endpointslices", "servicecidrs"):
                server.expect(resource, refused(503, Retry_After="60"), times=10**9)
        case "node_unanswered":
            server.expect("nodes", refused(503, Retry_After="60"), times=10**9)
    with working(server, real_time=True) as running:
        running.until(lambda: len(server.requests) >= (1 if moment == "node_unanswered" else 4))
        if moment == "quiet":
            running.until(lambda: running.store.complete)
    assert [each.name for each in threading.enumerate() if each.name.startswith("watch-")] == []


def test_an_unchanged_list_changes_nothing(server: FakeApiServer, running: Running) -> None:
    """An object that is listed again unchanged makes no Service dirty (contract 1.1.9)."""
    running.until(lambda: running.changes)
    before = len(running.synced.reports)
    for resource in ("services", "endpointslices"):
        server.expect(resource, refused(410), verb="watch")
        server.end_watches(resource)
    running.until(
        lambda: all(
            len([e for e in server.asked(each) if e.streaming]) == 2
            for each in ("services", "endpointslices")
        )
    )
    server.delete("services", "web", "demo")
    running.until(lambda: not any(str(key) == "demo/web" for key in contents(running.store)))
    running.source.stop()
    looked_at = [name for report in running.synced.reports[before:] for name in report.looked_at]
    assert {str(name) for name in looked_at} == {"demo/web"}


def test_without_streaming_lists(server: FakeApiServer) -> None:
    server.streams_lists = False
    with following(server) as running:
        running.until(lambda: running.changes and len(server.asked("servicecidrs")) == 3)
        assert [len(server.asked(each, "list")) for each in server.collections] == [1, 1, 1, 1]
