"""When to sync: one runner per family, and what they share.

A runner waits for a request, syncs in a worker thread, and leaves at least `min_period` between the
end of a run and the start of the next, so that many events before a run lead to one (contract 1.3).
A failed run is tried again after `retry_period` at the latest; with nothing to do there is a run
every hour. An unexpected exception ends a run, never the runner.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from loguru import logger

from nftproxy.errors import NftproxyError

HOURLY = 3600.0


class Runner:
    """Calls `run` on request; all methods belong to the event loop's thread."""

    def __init__(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        *,
        min_period: float,
        retry_period: float,
    ) -> None:
        self.name = name
        self.failing = False
        self._run = run
        self._min_period = min_period
        self._retry_period = retry_period
        self._requested = asyncio.Event()
        self._idle = asyncio.Event()

    def request(self) -> None:
        """Request a run; another request before its start changes nothing."""
        self._idle.clear()
        self._requested.set()

    @property
    def busy(self) -> bool:
        """Whether a run is requested or under way."""
        return not self._idle.is_set()

    async def settled(self) -> None:
        """Wait until nothing is requested or running."""
        await self._idle.wait()

    async def run_forever(self) -> None:
        """Serve requests until cancelled."""
        loop = asyncio.get_running_loop()
        finished = loop.time()
        while True:
            due = finished + (self._retry_period if self.failing else HOURLY)
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it swallows a cancellation that meets a request,
                # and this never ends.
                async with asyncio.timeout_at(due):
                    await self._requested.wait()
            self._requested.clear()
            self._idle.clear()
            await self._once()
            if not self._requested.is_set():
                self._idle.set()
            finished = loop.time()
            await asyncio.sleep(self._min_period)

    async def _once(self) -> None:
        try:
            await self._run()
        except NftproxyError as error:
            self.failing = True
            hint = f" ({error.hint})" if error.hint else ""
            logger.error(
                "{}: sync failed, traffic goes on as before; next try in {:g} s: {}{}",
                self.name,
                self._retry_period,
                error,
                hint,
            )
        except Exception:  # noqa: BLE001 - contract 1.3.5: whatever happens, the next run must come
            self.failing = True
            logger.exception(
                "{}: sync failed unexpectedly; next try in {:g} s", self.name, self._retry_period
            )
        else:
            self.failing = False
