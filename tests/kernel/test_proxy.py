"""When runs are requested and reported, with a table in the kernel."""

import asyncio
import contextlib

from nftproxy.address import Family
from nftproxy.lab.namespace import enter
from nftproxy.model import EndpointSlice, Service, ServiceCIDR
from nftproxy.sync.proxy import Observer, Proxy
from tests.support.objects import service
from tests.support.tables import new_namespace, table_in


class Noting(Observer):
    """Notes what it is told, until a first run is over."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.done = asyncio.Event()

    def queued(self, family: Family) -> None:
        self.seen.append(f"queued {family}")

    def started(self, family: Family) -> None:
        self.seen.append(f"started {family}")

    def failed(self, family: Family, seconds: float, *, full: bool) -> None:
        del seconds, full
        self.seen.append(f"failed {family}")
        self.done.set()


def test_a_request_before_the_start_is_still_due_after_it() -> None:
    """Else a first sync that fails for ever looks healthy for ever.

    The start clears what is due.
    """

    async def run(netns: str) -> list[str]:
        with table_in(netns, service()) as table:
            for kind in (Service, EndpointSlice, ServiceCIDR):
                table.store.delivered(kind)
            table.sync = fail  # type: ignore[method-assign,assignment]
            observer = Noting()
            proxy = Proxy(table, observer)
            proxy.changed()
            running = asyncio.create_task(proxy.run())
            await observer.done.wait()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            return observer.seen

    with new_namespace() as netns, enter(netns):
        seen = asyncio.run(run(netns))
    assert seen == ["queued IPv4", "started IPv4", "queued IPv4", "failed IPv4"]


def fail(*_: object) -> None:
    raise OSError("nobody may write")
