"""From samples to figures: percentiles, and ratios between modes. Pure."""

import math
from collections.abc import Iterable, Sequence

from nftproxy.bench.measures import Measure, Row, Sample

Key = tuple[int, str, Measure, str]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of readings in ascending order, interpolated between two."""
    where = (len(ordered) - 1) * percent / 100
    low, high = math.floor(where), math.ceil(where)
    return ordered[low] + (ordered[high] - ordered[low]) * (where - low)


class Summary:
    """The samples of a run by measure; readings of all rounds count alike.

    `order` is that of the modes.
    """

    def __init__(self, samples: Iterable[Sample], order: Sequence[str]) -> None:
        self._order = order
        self._readings: dict[Key, list[float]] = {}
        for sample in samples:
            key = sample.services, sample.mode, sample.measure, sample.place
            self._readings.setdefault(key, []).append(sample.value)
        for readings in self._readings.values():
            readings.sort()

    @property
    def sizes(self) -> list[int]:
        """The numbers of services, ascending."""
        return sorted({size for size, *_ in self._readings})

    @property
    def modes(self) -> list[str]:
        """The modes with samples, in the given order."""
        found = {mode for _, mode, *_ in self._readings}
        return [mode for mode in self._order if mode in found]

    def readings(self, services: int, mode: str, measure: Measure, place: str = "") -> list[float]:
        """Return readings in ascending order, possibly empty."""
        return self._readings.get((services, mode, measure, place), [])

    def value(self, services: int, mode: str, row: Row) -> float | None:
        """Return the figure of a row; None without readings."""
        found = self.readings(services, mode, row.measure, row.place)
        return percentile(found, row.percent) if found else None

    def ratio(self, services: int, mode: str, base: str, row: Row) -> float | None:
        """Return the ratio to another mode; None if one of them is missing or 0."""
        value, other = self.value(services, mode, row), self.value(services, base, row)
        return value / other if value is not None and other else None
