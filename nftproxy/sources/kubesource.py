"""The cluster as a source.

Four reflectors, each in a thread, that keep the store in step with the API server.

The own Node is first; the others start when the server has answered for it (contract 1.2.1).
Nothing here interprets the objects. The store is the only copy and cannot drift, so it needs no
periodic resync (contract 1.1.9).
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Final

from loguru import logger

from nftproxy.model import Node, Object, ObjectName
from nftproxy.sources.apiserver import ApiConnection
from nftproxy.sources.reflector import Environment, Reflector
from nftproxy.sources.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, own_node
from nftproxy.store import Store

_STOP_TIMEOUT: Final = 2.0


class KubeSource:
    """Delivers Services, EndpointSlices, ServiceCIDRs and one Node to a store."""

    node_required = True

    def __init__(
        self,
        connection: ApiConnection,
        store: Store,
        node_name: str,
        *,
        changed: Callable[[], None],
        node_changed: Callable[[Node | None], None] = lambda _: None,
        environment: Environment | None = None,
    ) -> None:
        """Prepare; no request is sent before `start`.

        `changed` is called when there may be something to sync, and not before the store is
        complete (contract 1.3.6); `node_changed` with each version of the Node that differs from
        the one before, and None when it was deleted. Both are called from threads of the source.
        """
        self._connection = connection
        self._store = store
        self._changed = changed
        self._node = _NodeSink(store, node_name, node_changed)
        environment = environment or Environment()
        first = Reflector(own_node(node_name), connection, self._node, self._notify, environment)
        others = [
            Reflector(each, connection, store, self._notify, environment)
            for each in (SERVICES, ENDPOINT_SLICES, SERVICE_CIDRS)
        ]
        self._reflectors = [first, *others]
        self._threads = [_thread(first, first.run)]
        self._threads += [_thread(each, partial(self._after_node, each)) for each in others]

    def start(self) -> None:
        """Start to list and watch."""
        for thread in self._threads:
            thread.start()

    async def follow(self) -> None:
        """Start to list and watch; the threads run until `stop`."""
        self.start()

    def wait_for_node(
        self, timeout: float, usable: Callable[[Node], bool] = lambda _: True, /
    ) -> Node | None:
        """Wait for the Node, and return its last known state.

        Waits without limit for an answer of the server (contract 1.2.1), then up to `timeout`
        seconds for a `usable` Node (contract 1.2.2, 1.2.3). None without a Node, or if the source
        was stopped. Waiting again is cheap.
        """
        return self._node.wait(timeout, usable)

    def stop(self) -> None:
        """End all threads and connections. The store stays as it is.

        A thread that waits for the first bytes of an answer cannot be woken; it ends by itself.
        """
        self._node.stop()
        for reflector in self._reflectors:
            reflector.stop()
        deadline = time.monotonic() + _STOP_TIMEOUT
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._connection.close()

    def _after_node(self, reflector: Reflector) -> None:
        if self._node.wait_answered():
            reflector.run()

    def _notify(self) -> None:
        if self._store.complete:
            self._changed()


class _NodeSink:
    """In front of the store for the one Node.

    Lets others wait for it, and reports its deletion, also one that only a new list shows (contract
    1.4.4).
    """

    def __init__(self, store: Store, name: str, changed: Callable[[Node | None], None]) -> None:
        self._store = store
        self._name = name
        self._changed = changed
        self._condition = threading.Condition()
        self._answered = False
        self._stopped = False

    def put(self, item: Object, /) -> bool:
        if not isinstance(item, Node):
            return False
        before = self._store.node
        zone_changed = self._store.put(item)
        if item != before:
            self._changed(item)
        with self._condition:
            self._condition.notify_all()
        return zone_changed

    def remove(self, kind: type[Object], key: ObjectName, /) -> bool:
        self._changed(None)
        return self._store.remove(kind, key)

    def replace(
        self, kind: type[Object], items: Iterable[Object], /, *, keep: Collection[ObjectName]
    ) -> bool:
        changed = [self.put(item) for item in items]
        self._store.delivered(kind)
        if not changed and not keep:
            logger.warning("the API server knows no Node {}", self._name)
            if self._store.node is not None:
                self._changed(None)
        with self._condition:
            self._answered = True
            self._condition.notify_all()
        return any(changed)

    def wait_answered(self) -> bool:
        """Wait until the server has answered for the Node; return False after `stop`."""
        with self._condition:
            self._condition.wait_for(lambda: self._answered or self._stopped)
            return not self._stopped

    def wait(self, timeout: float, usable: Callable[[Node], bool]) -> Node | None:
        def found() -> bool:
            return self._stopped or (self._store.node is not None and usable(self._store.node))

        self.wait_answered()
        with self._condition:
            self._condition.wait_for(found, timeout)
            return None if self._stopped else self._store.node

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify_all()


def _thread(reflector: Reflector, target: Callable[[], None]) -> threading.Thread:
    return threading.Thread(target=target, name=f"watch-{reflector.resource.name}", daemon=True)
