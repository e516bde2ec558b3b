"""A proxy that runs in a network namespace, in a thread of this process.

Threads inherit the namespace they are started in.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from loguru import logger

from nftproxy.configuration.settings import NodeSettings
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.namespace import enter
from nftproxy.model import EndpointSlice, Object, Service
from nftproxy.store import Store
from nftproxy.sync.proxy import Proxy
from nftproxy.sync.table import Table
from tests.support.world import SLOW


class Running:
    """A running proxy, its store and what it logged."""

    def __init__(self, settings: NodeSettings) -> None:
        self.store = Store(settings.families)
        self.store.delivered(Service)
        self.store.delivered(EndpointSlice)
        self.log: list[str] = []
        self.proxy: Proxy
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    def apply(self, *objects: Object) -> None:
        """Deliver objects and ask for a sync."""
        for item in objects:
            self.store.put(item)
        self._loop.call_soon_threadsafe(self.proxy.changed)

    def logged(self, text: str) -> list[str]:
        """The log lines that contain a text."""
        return [line for line in self.log if text in line]

    def settled(self) -> bool:
        """Whether nothing is requested or under way."""
        return not any(runner.busy for runner in self.proxy.runners.values())

    def serve(self, namespace: str, stopping: threading.Event) -> None:
        """Run until `stopping`; the body of the thread."""
        try:
            with enter(namespace), Kernel() as kernel:
                asyncio.run(self._serve(kernel, stopping))
        except BaseException as error:  # noqa: BLE001 - told to the test by `running`
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self, kernel: Kernel, stopping: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self.proxy = Proxy(Table(self._settings, self.store, kernel))
        task = asyncio.create_task(self.proxy.run())
        self.proxy.changed()
        self._loop.call_soon(self._ready.set)
        await asyncio.to_thread(stopping.wait)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def check(self) -> None:
        """Wait for the start; raise what went wrong."""
        self._ready.wait()
        if self._failure:
            raise self._failure


@contextlib.contextmanager
def running(namespace: str, settings: NodeSettings) -> Iterator[Running]:
    """Run a proxy for the length of a `with` block."""
    found = Running(settings)
    sink = logger.add(
        lambda line: found.log.append(str(line)), level="INFO", format="{level} {message}"
    )
    stopping = threading.Event()
    thread = threading.Thread(target=found.serve, args=(namespace, stopping))
    thread.start()
    try:
        found.check()
        yield found
    finally:
        stopping.set()
        thread.join()
        logger.remove(sink)
    found.check()


def eventually(
    condition: Callable[[], object],
    seconds: float = 60,
    why: Callable[[], str] = lambda: "it never happened",
) -> None:
    """Wait until a condition is true; AssertionError that says `why` when it is not in time.

    The time is for machines that have much else to do, not a measurement.
    """
    deadline = time.monotonic() + seconds * SLOW
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.01)
