"""The report of a run.

A table for each size in the terminal, and CSV of all samples and of the machine.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from nftproxy.bench.measures import FLOOR, NO_PROXY, ROWS, Measure, MeasurePlace, Row, Sample, Unit
from nftproxy.bench.shapes import Compared
from nftproxy.bench.statistics import Summary

OURS: Final = "nftproxy"
LEGEND: Final = f"2.00x: two times {OURS}; after the slash: times {NO_PROXY}"
_UNDISTURBED: Final = 10.0
"""The percentile of connections to compare where a microsecond counts: others work as well."""
_COLUMNS: Final = ("services", "round", "mode", "measure", "place", "value", "unit")
_PREFIXES: Final[dict[Unit, tuple[tuple[float, str], ...]]] = {
    Unit.SECONDS: ((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    Unit.BYTES: ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
    Unit.PER_SECOND: ((1e3, "k/s"), (1, "/s")),
    Unit.BYTES_PER_SECOND: ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")),
}


def quantity(value: float, unit: Unit) -> str:
    """Return a reading with three digits and a unit.

    It is negative if others freed memory meanwhile.

    >>> quantity(0.00123, Unit.SECONDS)
    '1.23 ms'
    """
    prefixes = _PREFIXES[unit]
    factor, name = next((each for each in prefixes if abs(value) >= each[0] * 0.9995), prefixes[-1])
    return (
        f"{'-' if value < 0 else ''}{_three_digits(abs(value) / factor)} {name}" if value else "0"
    )


def times(ratio: float) -> str:
    """Return a ratio for people."""
    return f"{_three_digits(ratio)}x"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def table(figures: Summary, services: int) -> list[list[str]]:
    """Return the rows of a size, the header first; measures without samples are left out."""
    modes = [
        mode
        for mode in figures.modes
        if any(figures.value(services, mode, row) is not None for row in ROWS)
    ]
    rows = [[row.title, *(_cell(figures, services, mode, row) for mode in modes)] for row in ROWS]
    rows += _above(figures, services, modes)
    return [[f"{services} services", *modes], *(row for row in rows if any(row[1:]))]


def _above(figures: Summary, services: int, modes: Sequence[str]) -> list[list[str]]:
    """Return what connections cost above routing, for each place, and how often that of `floor`."""
    found: list[list[str]] = []
    for place in MeasurePlace:
        row = Row(Measure.CONNECT, place, _UNDISTURBED)
        values = {mode: figures.value(services, mode, row) for mode in modes}
        bare, floor = values.get(NO_PROXY), values.get(FLOOR)
        if bare is None or floor is None or floor <= bare:
            continue
        above = {mode: value - bare for mode, value in values.items() if value is not None}
        cells = [
            f"{quantity(above[mode], row.measure.unit)} {times(above[mode] / above[FLOOR])}"
            if mode in above and mode != NO_PROXY
            else ""
            for mode in modes
        ]
        found.append([f"{row.title}, above {NO_PROXY}; times {FLOOR}", *cells])
    return found


def _cell(figures: Summary, services: int, mode: str, row: Row) -> str:
    value = figures.value(services, mode, row)
    if value is None:
        return ""
    ours = figures.ratio(services, mode, OURS, row) if mode != OURS else None
    bare = (
        figures.ratio(services, mode, NO_PROXY, row)
        if mode != NO_PROXY and row.measure.of_packets
        else None
    )
    ratios = [*([times(ours)] if ours else []), *([f"/ {times(bare)}"] if bare else [])]
    return " ".join([quantity(value, row.measure.unit), *ratios])


def shapes(compared: Iterable[Compared]) -> list[list[str]]:
    """Return the rows of compared shapes, the header first."""
    rows = [
        [
            title,
            quantity(odd, Unit.SECONDS),
            quantity(plain, Unit.SECONDS),
            times(odd / plain),
        ]
        for title, odd, plain in compared
    ]
    return [["compared", "first", "second", "ratio"], *rows]


def write_shapes(path: Path, compared: Iterable[Compared]) -> None:
    """Write the medians of compared shapes, in seconds."""
    rows = ((title, f"{odd:.9g}", f"{plain:.9g}") for title, odd, plain in compared)
    _write(path, ("compared", "first", "second"), rows)


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write every reading, in seconds and bytes."""
    rows = (
        (s.services, s.round, s.mode, s.measure, s.place, f"{s.value:.9g}", s.measure.unit)
        for s in samples
    )
    _write(path, _COLUMNS, rows)


def write_machine(path: Path, machine: Mapping[str, str]) -> None:
    """Write the description of the machine."""
    _write(path, ("property", "value"), machine.items())


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
