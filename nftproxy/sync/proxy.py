"""A node's service proxy: it keeps the table in step with a store.

One worker thread does all work on the table, so that a long sync never delays health answers; the
load of an empty table has a second one, which commits. The event loop's thread only decides when.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from loguru import logger

from nftproxy.address import Address, Family
from nftproxy.configuration.settings import ALL
from nftproxy.errors import BlockedError, KernelError
from nftproxy.kernel.listener import InterferenceKind, Listener
from nftproxy.node import interfaces
from nftproxy.sync.report import Report
from nftproxy.sync.resets import Resets
from nftproxy.sync.runner import Runner
from nftproxy.sync.table import Table

# seconds without a sync before unused chains are deleted; before kernel 6.2 they count as used for
# a moment
QUIET = 2.0
REPAIR_PERIOD = 1.0  # seconds between repairs, for a program that keeps changing our table

Result = TypeVar("Result")


class Observer:
    """Observes the runs, in the event loop's thread; this one does nothing."""

    def queued(self, family: Family) -> None:
        """Note a request for a sync."""

    def started(self, family: Family) -> None:
        """Note the start of a family's runner."""

    async def synced(self, report: Report, seconds: float) -> None:
        """Note a successful sync."""

    def addresses_changed(self) -> None:
        """Note that this machine gained or lost an address; a sync of every family follows."""

    def failed(self, family: Family, seconds: float, *, full: bool) -> None:
        """Note a failed sync; `full`: it was to read the table back."""

    def tidying_failed(self) -> None:
        """Note that unused chains could not be deleted."""

    def repaired(self) -> None:
        """Note a repair of our table after a change by somebody else."""

    def noticed(self, blocked: BlockedError | None) -> None:
        """Note whether another program's table keeps us from calling libnftables."""


class Proxy:
    """Runs syncs on changes of the store, until stopped.

    All methods belong to the event loop's thread.
    """

    def __init__(self, table: Table, observer: Observer | None = None) -> None:
        self._table = table
        self._store = table.store
        self._observer = observer or Observer()
        self._worker = ThreadPoolExecutor(1, "table")
        self.repairs = 0
        self._own: list[Address] | None = None
        self._interference = InterferenceKind.NOTHING
        self._repair: asyncio.TimerHandle | None = None
        self._repaired = -REPAIR_PERIOD
        self._looked = asyncio.Event()  # a sync has looked which endpoints are gone
        settings = table.settings
        self.runners = {
            family: Runner(
                str(family),
                lambda family=family: self._sync(family),  # type: ignore[misc]
                min_period=settings.min_sync_period,
                retry_period=settings.sync_period,
            )
            for family in settings.families
        }

    def changed(self) -> None:
        """Sync every family that has work.

        Nothing before all initial objects are there (contract 1.2.4).
        """
        if self._store.complete:
            for family in self.runners:
                if self._store.pending(family):
                    self._request(family)

    def _request(self, family: Family) -> None:
        self._observer.queued(family)
        self.runners[family].request()

    async def in_worker(self, work: Callable[[], Result]) -> Result:
        """Run a function in the thread that works on the table, in turn with the syncs."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def run(self) -> None:
        """Keep the table in step until cancelled; the table stays as it is then."""
        loop = asyncio.get_running_loop()
        netlink = interfaces.subscribe()
        loop.add_reader(netlink, self._addresses_changed, netlink)
        listener = Listener(self._table.kernel.ports)
        loop.add_reader(listener.socket, self._table_changed, listener)
        try:
            async with asyncio.TaskGroup() as tasks:
                for family, runner in self.runners.items():
                    self._observer.started(family)
                    if runner.busy:  # requested before: the start does not make it any less due
                        self._observer.queued(family)
                    tasks.create_task(runner.run_forever())
                tasks.create_task(self._tidy_forever())
                if self._table.resets:
                    tasks.create_task(self._reset_forever(self._table.resets))
        finally:
            loop.remove_reader(netlink)
            netlink.close()
            loop.remove_reader(listener.socket)
            listener.close()
            self._worker.shutdown(wait=True)

    async def _sync(self, family: Family) -> None:
        """Bring a family in step.

        A Service with very many chains takes several steps. Between them runs whatever waits for
        the worker: the other family, repairs, clean-ups; each step takes all new changes.
        """
        while self._store.complete and (await self._step(family)).postponed:
            pass

    async def _step(self, family: Family) -> Report:
        clock = asyncio.get_running_loop().time
        started = clock()
        full = not self._table.syncers[family].in_step
        try:
            await self._notice()
            report = await self.in_worker(lambda: self._table.sync(family, self._own_addresses()))
        except BaseException:
            self._observer.failed(family, clock() - started, full=full)
            raise
        seconds = clock() - started
        if report.written or report.read_back:
            logger.info(
                "{}: in step: {} services looked at, {} elements written in {} transactions, "
                "{:.1f} ms{}",
                family,
                report.services,
                report.written,
                report.transactions,
                seconds * 1000,
                " (read back)" if report.read_back else "",
            )
        await self._observer.synced(report, seconds)
        if resets := self._table.resets:
            await self.in_worker(lambda: resets.synced(family))
            self._looked.set()
        return report

    def _own_addresses(self) -> list[Address]:
        """Return the addresses of this machine's interfaces, as of their last change.

        Reading them costs more than a sync.
        """
        if self._own is None:
            every = all(
                networks is ALL for networks in self._table.settings.nodeport_addresses.values()
            )
            self._own = [] if every else interfaces.addresses()
        return self._own

    def _addresses_changed(self, netlink: socket.socket) -> None:
        interfaces.drain(netlink)
        self._own = None
        self._observer.addresses_changed()
        for family in self.runners:
            self._request(family)

    def _table_changed(self, listener: Listener) -> None:
        found = listener.look()
        if found.kind is InterferenceKind.NOTHING:
            return
        self._interference = max(self._interference, found.kind)
        loop = asyncio.get_running_loop()
        if self._repair is None:
            logger.warning(
                "somebody changed table inet nftproxy ({}); repairing it", found.who or "unknown"
            )
            self._repair = loop.call_at(
                max(loop.time(), self._repaired + REPAIR_PERIOD), self._start_repair
            )

    def _start_repair(self) -> None:
        self._repair = None
        self._repaired = asyncio.get_running_loop().time()
        self.repairs += 1
        kind, self._interference = self._interference, InterferenceKind.NOTHING
        self._observer.repaired()
        self._worker.submit(self._table.distrust, program=kind is InterferenceKind.PROGRAM)
        for family in self.runners:
            self._request(family)

    async def _notice(self) -> None:
        """Check whether libnftables may be called, and sync if it may again."""
        if await self.in_worker(self._table.notice):
            for family in self.runners:
                self._request(family)
        self._observer.noticed(self._table.blocked)

    async def _reset_forever(self, resets: Resets) -> None:
        """Write which endpoints are gone, each a moment after it has left all slices."""
        said = ""
        while True:
            await self._looked.wait()
            self._looked.clear()
            while (due := resets.due) is not None:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                try:
                    await self.in_worker(resets.apply)
                except KernelError as error:
                    if str(error) != said:
                        said = str(error)
                        logger.error(
                            "connections to endpoints that are gone are not reset; tried again "
                            "after the next sync: {} ({})",
                            error,
                            error.hint,
                        )
                    break
                said = ""

    def _busy(self) -> bool:
        return any(runner.busy for runner in self.runners.values())

    async def _tidy_forever(self) -> None:
        while True:
            await asyncio.sleep(QUIET)
            if self._table.blocked:
                with suppress(KernelError):
                    await self._notice()
            if self._table.untidy and not self._busy():
                with suppress(KernelError):
                    if not await self.in_worker(lambda: self._table.tidy(self._busy)):
                        self._observer.tidying_failed()
