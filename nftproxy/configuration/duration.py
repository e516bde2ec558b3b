"""Durations as Kubernetes writes them: Go's `30s`, `15m0s`, `1h30m`, `1.5h`, `100ms`.

A `Duration` is a whole number of nanoseconds. So it prints as Go's Duration.String() does and
parses back to the same value; floating-point seconds would not. It is a plain `int` in comparisons.
This module knows nothing of configuration: its callers decide whether zero means "not set".
"""

import re
from typing import Final, Self

NANOSECOND: Final = 1
MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE

_UNITS: Final = {
    "ns": NANOSECOND,
    "us": MICROSECOND,
    "µs": MICROSECOND,  # U+00B5, which Go prints
    "μs": MICROSECOND,
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_TERM: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_LIMIT: Final = 1 << 63  # Go counts in a signed 64-bit integer
_LONGEST: Final = (
    256  # characters; the only texts refused that Go would read are padded with hundreds of zeros
)


class Duration(int):
    """A length of time in nanoseconds.

    Negative ones exist, and are refused where they make no sense.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the duration that `text` spells.

        ValueError if it is invalid or beyond 292 years.
        """
        negative = text.startswith("-")
        rest = text[1:] if text[:1] in ("-", "+") else text
        if rest == "0":  # the only number that needs no unit
            return cls(0)
        total = position = 0
        if len(rest) > _LONGEST:
            raise ValueError(_complaint(text))
        while position < len(rest):
            term = _TERM.match(rest, position)
            if term is None or not (term[1] or term[2]):
                raise ValueError(_complaint(text))
            total += _nanoseconds(term[1], term[2] or "", _UNITS[term[3]])
            position = term.end()
        if not rest or total > _LIMIT or (total == _LIMIT and not negative):
            raise ValueError(_complaint(text))
        return cls(-total if negative else total)

    @property
    def seconds(self) -> float:
        """The same in seconds, for clocks and timers."""
        return self / SECOND

    def __str__(self) -> str:
        """Spell it as Go's Duration.String() does: `1h30m0s`, `1.5s`, `100ms`, `0s`."""
        sign, total = ("-", -self) if self < 0 else ("", int(self))
        if total == 0:
            return "0s"
        for name, unit in (("ns", NANOSECOND), ("µs", MICROSECOND), ("ms", MILLISECOND)):
            if total < unit * 1000:
                return f"{sign}{_decimal(total, unit)}{name}"
        hours, minutes = total // HOUR, total // MINUTE % 60
        text = _decimal(total % MINUTE, SECOND) + "s"
        if total >= MINUTE:
            text = f"{minutes}m{text}"
        return f"{sign}{hours}h{text}" if hours else sign + text

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"


def _nanoseconds(whole: str, fraction: str, unit: int) -> int:
    """Return whole.fraction units, the fraction rounded as Go does.

    It multiplies in floating point and cuts off.
    """
    total = int(whole or "0") * unit
    digits = fraction
    while digits and int(digits) > _LIMIT:  # Go reads only as many digits as fit into 63 bits
        digits = digits[:-1]
    if digits:
        total += int(float(int(digits)) * (float(unit) / 10.0 ** len(digits)))
    return total


def _decimal(total: int, unit: int) -> str:
    """Return total / unit exactly, without trailing zeros."""
    whole, rest = divmod(total, unit)
    if not rest:
        return str(whole)
    fraction = f"{rest:0{len(str(unit)) - 1}}".rstrip("0")
    return f"{whole}.{fraction}"


def _complaint(text: str) -> str:
    return f"{text[:80]!r} is not a duration such as 30s, 1h30m or 100ms"
