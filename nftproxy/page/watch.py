"""The table as the page reads it: whole where it has changed, else only the counters that moved.

The number of the last transaction says whether anything may have changed. Whoever changes nftables
all the time, in this table or another, gets a whole reading seldom enough to cost little.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from nftproxy.kernel.reader import Reader
from nftproxy.kernel.snapshot import ShownServicePort, counted_again, take_snapshot
from nftproxy.monitoring.activity import Activity, Busy
from nftproxy.table.schema import Reason

_PAUSE: Final = 20.0  # between whole readings: how often as long as one takes


class PageReading(NamedTuple):
    """What a reading found."""

    busy: Mapping[str, Busy]
    refused: Counter[Reason]  # those of `busy`, and those that no service port counts


class TableWatch:
    """Readings of the table of one namespace; not for two threads at the same time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.services: dict[str, ShownServicePort] = {}
        self.whole = 0  # whole readings so far
        self._reader = Reader()
        self._activity: Activity | None = None
        self._moved: set[str] = set()  # service ports with other counters than in `services`
        self._clock = clock
        self._generation = -1
        self._due = 0.0  # when the next whole reading may be

    def close(self) -> None:
        """Close the socket."""
        self._reader.close()

    def require(self) -> None:
        """Raise KernelError if the table cannot be read; it need not be there."""
        self._reader.table_exists()

    def read(self) -> PageReading | None:
        """Read what has grown since the reading before; None if there is no table.

        KernelError if it cannot be read.
        """
        if not self._reader.table_exists():
            self.services, self._moved, self._generation = {}, set(), -1
            return None
        self._read_whole()
        if self._activity is None:
            self._activity = Activity(self._reader)
        growth = PageReading(*self._activity.read())
        self._moved |= growth.busy.keys() & self.services.keys()
        return growth

    def is_current(self, name: str) -> bool:
        """Whether a service port's counters in `services` are those of the last reading."""
        return name not in self._moved

    def update(self, name: str) -> None:
        """Read the counters of a service port again."""
        self.services[name] = counted_again(self._reader, self.services[name])
        self._moved.discard(name)

    def _read_whole(self) -> None:
        generation, now = self._reader.generation(), self._clock()
        if generation == self._generation or (self._generation >= 0 and now < self._due):
            return
        if seen := take_snapshot(self._reader):
            self.services = {port.name: port for port in seen.services}
            self._moved = set()
            self._generation = generation
            self.whole += 1
        self._due = self._clock() + _PAUSE * (self._clock() - now)
