"""Sparklines and bars, as numbers for SVG. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

WIDTH = 120  # of a sparkline and of a bar, in its own units
HEIGHT = 24
_HUES = 6  # of the style sheet's colours for shares


class BarPart(NamedTuple):
    """One coloured part of a bar: where it starts, its width, the number of its colour."""

    x: float
    width: float
    hue: int


def sparkline(values: Sequence[float], length: int) -> str:
    """Return the points of a polyline; the newest value is at the right edge.

    `length` values fill the width. The largest one touches the top; zero is the bottom line.
    """
    newest = values[-length:]
    top = max(newest, default=0)
    step = WIDTH / max(1, length - 1)
    points = []
    for age, value in enumerate(reversed(newest)):
        height = value / top * (HEIGHT - 2) if top else 0
        points.append(f"{WIDTH - age * step:.1f},{HEIGHT - 1 - height:.1f}")
    return " ".join(reversed(points))


def bar(counts: Iterable[float]) -> list[BarPart]:
    """Return the parts of a bar, by share; without any count all parts are equal."""
    counts = list(counts)
    total = sum(counts)
    if not total:
        counts, total = [1.0] * len(counts), float(len(counts))
    parts, x = [], 0.0
    for number, count in enumerate(counts):
        width = count / total * WIDTH
        parts.append(BarPart(round(x, 2), round(width, 2), number % _HUES))
        x += width
    return parts
