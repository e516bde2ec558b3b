"""A reflector at work against a stand-in server, in a world where a pause takes no time; and what it leaves in the store."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from loguru import logger

from nftproxy.address import Family
from nftproxy.model import Object, ObjectName
from nftproxy.sources.apiserver import Connection, connect
from nftproxy.sources.reflector import Environment, Reflector
from nftproxy.sources.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, Resource
from nftproxy.store import Store
from tests.fake_apiserver import TIMEOUT, FakeApiServer

RESOURCES = {each.name: each for each in (SERVICES, ENDPOINT_SLICES, SERVICE_CIDRS)}


class Time:
    """A clock that only pauses (and tests) move, and dice that always fall the same way."""

    def __init__(self, condition: threading.Condition) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.condition = condition
        self.environment = Environment(clock=lambda: self.now, chance=lambda: 1.0, pause=self._pause)

    def _pause(self, _: threading.Event, seconds: float) -> None:
        with self.condition:
            self.pauses.append(seconds)
            self.now += seconds
            self.condition.notify_all()


class Mirror:
    """Mirrors one resource of a server in a store."""

    def __init__(self, server: FakeApiServer, resource: Resource, connection: Connection | None = None) -> None:
        self.server = server
        self.store = Store(list(Family))
        self.changes = 0
        self.time = Time(server.condition)
        self.connection = connection or connect("", server.url)
        self.reflector = Reflector(resource, self.connection, self.store, self._changed, self.time.environment)
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
        with self.server.condition:
            self.changes += 1
            self.server.condition.notify_all()


def contents(store: Store) -> Mapping[ObjectName, Object]:
    """Return all objects in a store but the Node. Names of different kinds must differ."""
    slices = {ObjectName(owner.namespace, name): each for owner, all_ in store._slices.items() for name, each in all_.items()}
    cidrs = {each.metadata.key: each for each in store._cidrs.values()}
    return {**store._services, **slices, **cidrs}


@contextmanager
def mirroring(server: FakeApiServer, resource: Resource, connection: Connection | None = None) -> Iterator[Mirror]:
    """Mirror a resource; at the end, compare what is in the store with what a fresh start finds, once the server behaves again."""
    mirror = Mirror(server, resource, connection)
    mirror.start()
    try:
        yield mirror
        server.behave()
        assert contents(mirror.store) == fresh_start(server, resource)
    finally:
        mirror.stop()


def fresh_start(server: FakeApiServer, resource: Resource) -> Mapping[ObjectName, Object]:
    """Return what somebody who starts now finds."""
    other = Mirror(server, resource, connect("", server.url) if server.token is None else None)
    other.start()
    try:
        other.until(lambda: other.changes)
        return contents(other.store)
    finally:
        other.stop()


def impatient(resource: Resource, seconds: float = 0.1) -> Resource:
    """Return a resource whose silence is noticed sooner."""
    return replace(resource, silence=seconds)


@contextmanager
def logged(level: str = "INFO", condition: threading.Condition | None = None) -> Iterator[list[str]]:
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
    """Write a kubeconfig file; `user` is what it says of the one user. Return its path."""
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return str(path)
