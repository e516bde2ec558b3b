"""One reading of the counters for everybody who looks; none while nobody does.

A thread reads the table, so that other answers never wait for it. All methods belong to one event
loop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from nftproxy.errors import NftproxyError
from nftproxy.kernel.snapshot import ShownServicePort
from nftproxy.page.rates import Rates
from nftproxy.page.watch import TableWatch

INTERVAL: Final = 2.0  # seconds between two readings
_IDLE: Final = 10.0  # seconds after the last request, when reading ends


class Meter:
    """The services of the table and their rates, read as long as somebody asks."""

    def __init__(
        self,
        watch: TableWatch,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rates = Rates()
        self.trouble = ""  # why there is nothing newer
        self.readings = 0
        self.is_resting = False  # nobody looks
        self._watch = watch
        self._one = asyncio.Lock()  # a look at the table at a time
        self._interval = interval
        self._clock = clock
        self._asked = clock()
        self._at = 0.0  # of the last reading
        self._wanted = asyncio.Event()
        self._changed = asyncio.Condition()

    @property
    def names(self) -> Iterable[str]:
        """All service ports."""
        return self._watch.services

    async def run(self) -> None:
        """Read while somebody asks, until cancelled."""
        while True:
            if self._clock() - self._asked > _IDLE:
                self._wanted.clear()
                self.is_resting = True
                await self._wanted.wait()
                self.is_resting = False
            await self._enter()
            await asyncio.sleep(self._interval)

    async def fresh(self) -> None:
        """Wait for a reading if the last one is old."""
        self._ask()
        if self._at and self._clock() - self._at < _IDLE:
            return
        number = self.readings
        async with self._changed:
            await self._changed.wait_for(lambda: self.readings > number)

    async def services(self, names: Iterable[str]) -> list[ShownServicePort]:
        """Return those service ports that are in the table, with their counters as they are now.

        KernelError if they cannot be read.
        """
        async with self._one:
            there = [name for name in names if name in self._watch.services]
            stale = [name for name in there if not self._watch.is_current(name)]
            if stale:
                await asyncio.to_thread(self._update, stale)
            return [self._watch.services[name] for name in there]

    def _update(self, names: Iterable[str]) -> None:
        for name in names:
            self._watch.update(name)

    async def ticks(self) -> AsyncIterator[int]:
        """Yield the number of each reading to come, as it comes."""
        number = self.readings
        while True:
            async with self._changed:
                while self.readings == number:
                    self._ask()
                    await self._changed.wait()
                number = self.readings
            yield number

    def _ask(self) -> None:
        self._asked = self._clock()
        self._wanted.set()

    async def _enter(self) -> None:
        try:
            async with self._one:
                growth = await asyncio.to_thread(self._watch.read)
            self.trouble = "" if growth else "There is no table inet nftproxy on this node."
        except NftproxyError as error:
            self.trouble = f"The table cannot be read: {error}"
        else:
            now = self._clock()
            seconds = max(now - self._at, 1e-3)
            if growth:
                self.rates.enter(*growth, self._watch.services, seconds, time.time())
            self._at = now
        async with self._changed:
            self.readings += 1
            self._changed.notify_all()
