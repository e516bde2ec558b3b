"""A reflector at work against a stand-in server, in a world where a pause takes no time.

What it leaves in store and kernel can be compared with what a fresh start leaves.

Each mirror keeps a table in a network namespace of its own in step, as a node does: what the
reflector puts into the store is synced, and what the kernel then holds is read back. One resource
is mirrored; objects of the others are in the store from the beginning.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from loguru import logger

from nftproxy.address import Family
from nftproxy.model import Object, ObjectName
from nftproxy.sources.apiserver import ApiConnection, connect
from nftproxy.sources.encoding import JSON, PROTOBUF
from nftproxy.sources.reflector import Environment, Reflector
from nftproxy.sources.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, Resource
from nftproxy.store import Store
from nftproxy.sync.report import Report
from nftproxy.sync.table import Table
from tests.support import tables
from tests.support.fake_apiserver import TIMEOUT, FakeApiServer

RESOURCES = (SERVICES, ENDPOINT_SLICES, SERVICE_CIDRS)


class Time:
    """A clock that only pauses (and tests) move, and dice that always fall the same way."""

    def __init__(self, condition: threading.Condition) -> None:
        self.now = 1000.0
        self.looks = 0  # at the clock: each watch looks when it begins and when it has ended
        self.pauses: list[float] = []
        self.condition = condition
        self.environment = Environment(clock=self._look, chance=lambda: 1.0, pause=self._pause)

    def _look(self) -> float:
        with self.condition:
            self.looks += 1
            self.condition.notify_all()
            return self.now

    def _pause(self, _: threading.Event, seconds: float) -> None:
        with self.condition:
            self.pauses.append(seconds)
            self.now += seconds
            self.condition.notify_all()


class Synced:
    """Keeps a table in step with its store, whenever a source says that something changed, from
    whichever thread.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.reports: list[Report] = []
        self.troubles: list[object] = []  # what no sync should come to
        self._lock = threading.Lock()

    def sync(self) -> None:
        """Do what a node does, but at once."""
        with self._lock:
            for family in self.table.settings.families:
                if self.table.store.complete and self.table.store.pending(family):
                    try:
                        report = self.table.sync(family, [])
                    except Exception as error:
                        self.troubles.append(error)
                        raise
                    self.reports.append(report)
                    self.troubles += report.refused.items()

    def left(self) -> Mapping[str, Any]:
        """Return what is in the store, and what each set in the kernel holds.

        Call it when no sync is under way.
        """
        assert self.troubles == [], self.troubles
        kernel = self.table.kernel
        found = {
            "store": contents(self.table.store),
            "Node": self.table.store.node,
            **tables.unordered(tables.contents(self.table)),
        }
        for family in self.table.settings.families:
            if (name := f"service_cidrs{family.digit}") in kernel.sets:
                found[name] = kernel.networks(name, family)
        return found


class Mirror:
    """Mirrors one resource of a server in the store and the kernel's table of a node."""

    def __init__(
        self,
        server: FakeApiServer,
        resource: Resource,
        table: Table,
        connection: ApiConnection | None = None,
    ) -> None:
        self.server = server
        self.store = table.store
        self.synced = Synced(table)
        self.changes = 0
        self.time = Time(server.condition)
        self.connection = connection or connect("", server.url, accept=f"{PROTOBUF}, {JSON}")
        self.reflector = Reflector(
            resource, self.connection, self.store, self._changed, self.time.environment
        )
        for other in RESOURCES:
            if other.kind is not resource.kind:
                documents = server.collections[other.name].objects.values()
                self.store.replace(
                    other.kind, [msgspec.convert(each, other.kind) for each in documents]
                )
        self._thread = threading.Thread(target=self.reflector.run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.reflector.stop()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        self.connection.close()

    def until(self, what: Callable[[], object]) -> None:
        """Wait until something is true; it may depend on requests, changes and pauses."""
        with self.server.condition:
            assert self.server.condition.wait_for(what, TIMEOUT), "waited in vain"

    def knows(self, name: str) -> bool:
        return any(key.name == name for key in contents(self.store))

    def _changed(self) -> None:
        self.synced.sync()
        with self.server.condition:
            self.changes += 1
            self.server.condition.notify_all()


def contents(store: Store) -> Mapping[ObjectName, Object]:
    """Return all objects in a store but the Node. Names of different kinds must differ."""
    slices = {
        ObjectName(owner.namespace, name): each
        for owner, all_ in store._slices.items()
        for name, each in all_.items()
    }
    cidrs = {each.metadata.key: each for each in store._cidrs.values()}
    return {**store._services, **slices, **cidrs}


@contextmanager
def mirroring(
    server: FakeApiServer, resource: Resource, connection: ApiConnection | None = None
) -> Iterator[Mirror]:
    """Mirror a resource.

    At the end, compare what it left in store and kernel with what somebody who starts then finds
    and makes.

    The server behaves again by then. Nothing is synced for the sake of the comparison.
    """
    with tables.bare_table(families=Family) as table:
        mirror = Mirror(server, resource, table, connection)
        mirror.start()
        try:
            yield mirror
        finally:
            mirror.stop()
        server.behave()
        same(mirror.synced.left(), fresh_start(server, resource, connection))


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """Fail, naming what differs, unless both are the same."""
    different = {
        name: (left.get(name), right.get(name))
        for name in {*left, *right}
        if left.get(name) != right.get(name)
    }
    assert not different, different


def fresh_start(
    server: FakeApiServer, resource: Resource, connection: ApiConnection | None = None
) -> Mapping[str, Any]:
    """Return what somebody who starts now finds and makes of it."""
    with tables.bare_table(families=Family) as table:
        other = Mirror(server, resource, table, connection)
        other.start()
        try:
            other.until(lambda: other.changes)
        finally:
            other.stop()
        return other.synced.left()


def impatient(resource: Resource, seconds: float = 0.1) -> Resource:
    """Return a resource whose silence is noticed sooner."""
    return replace(resource, silence=seconds)


@contextmanager
def logged(
    level: str = "INFO", condition: threading.Condition | None = None
) -> Iterator[list[str]]:
    """Gather the lines logged, and notify a condition of each."""
    lines: list[str] = []

    def gather(line: object) -> None:
        with condition or contextlib.nullcontext():
            lines.append(str(line).rstrip())
            if condition:
                condition.notify_all()

    handler = logger.add(gather, level=level, format="{level} {message}")
    try:
        yield lines
    finally:
        logger.remove(handler)


def kubeconfig(folder: Path, server: str, **user: Any) -> str:
    """Write a kubeconfig file; `user` is what it says of the one user. Return its path.

    Anybody is believed to be a server with https.
    """
    cluster = {"server": server, "insecure-skip-tls-verify": server.startswith("https:")}
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return str(path)
