"""Measures: names, units, and their rows in the table.

Everything else in the bench uses these names.

A `Sample` is one reading and never a summary. Seconds, bytes and counts are stored unscaled; only
people see ms or MB.
"""

import enum
from typing import Final, NamedTuple

import msgspec

NO_PROXY: Final = "none"
FLOOR: Final = "floor"
"""The modes that others are compared with."""


class Unit(enum.StrEnum):
    """The unit of a reading."""

    SECONDS = "s"
    BYTES = "B"
    PER_SECOND = "1/s"
    BYTES_PER_SECOND = "B/s"


class Measure(enum.StrEnum):
    """The measure of a reading; the value is its name in CSV."""

    FIRST_SYNC = "first sync"
    UPDATE = "one endpoint changes"
    ADD = "service added"
    DELETE = "service deleted"
    RESTART = "restart"
    TRANSACTION = "empty transaction"
    FIRST_SYNC_ASKED = "first sync, from the start of the process"
    UPDATE_ASKED = "one endpoint changes, from the request"
    RESTART_ASKED = "restart, from the start of the process"
    FIRST_SYNC_CPU = "first sync, processor time"
    UPDATE_CPU = "one endpoint changes, processor time"
    RESTART_CPU = "restart, processor time"
    SETTLED = "process memory"
    PEAK = "process memory, peak"
    PROGRAMS = "programs' memory, peak"
    KERNEL = "kernel memory"
    CONNECT = "connection"
    RATE = "connections per second"
    DATAGRAM = "UDP first packet"
    THROUGHPUT = "throughput"

    @property
    def unit(self) -> Unit:
        """The unit of its readings."""
        return _UNITS.get(self, Unit.SECONDS)

    @property
    def of_packets(self) -> bool:
        """Whether it sends packets, which cost something without a proxy, too."""
        return self in {Measure.CONNECT, Measure.RATE, Measure.DATAGRAM, Measure.THROUGHPUT}


class MeasurePlace(enum.StrEnum):
    """The place of the target service in the list."""

    START = "start"
    MIDDLE = "middle"
    END = "end"


class Sample(msgspec.Struct, frozen=True):
    """One reading. `place` is empty unless there are several, `round` counts from 1."""

    services: int
    round: int
    mode: str
    measure: Measure
    place: str
    value: float


class Row(NamedTuple):
    """A row of the table: a percentile of the readings of a measure at a place."""

    measure: Measure
    place: str
    percent: float

    @property
    def title(self) -> str:
        """The label of the row."""
        where = f", {self.place} of the list" if self.place else ""
        which = f", p{self.percent:g}" if self.measure in _SPREAD else ""
        return f"{self.measure}{where}{which}"


_UNITS: Final = {
    Measure.SETTLED: Unit.BYTES,
    Measure.PEAK: Unit.BYTES,
    Measure.PROGRAMS: Unit.BYTES,
    Measure.KERNEL: Unit.BYTES,
    Measure.RATE: Unit.PER_SECOND,
    Measure.THROUGHPUT: Unit.BYTES_PER_SECOND,
}
_SPREAD: Final = {Measure.CONNECT, Measure.DATAGRAM}
"""Measures with more percentiles than the median."""

ROWS: Final = tuple(
    Row(measure, place, percent)
    for measure in Measure
    for place in (MeasurePlace if measure is Measure.CONNECT else ("",))
    for percent in ((50.0, 90.0, 99.0) if measure in _SPREAD else (50.0,))
)
