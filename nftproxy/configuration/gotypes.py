"""Values of command-line flags as Go programs spell them, for click.

Booleans, integers, durations, lists and maps.

Only the spelling is checked here; `validation` checks whether a value makes sense.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from nftproxy.configuration.duration import Duration

_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("0", "f", "F", "false", "False", "FALSE"), False),
}

T = TypeVar("T")


class GoType(click.ParamType):  # type: ignore[type-arg]  # generic in click's types, not in every click at run time
    """A type of flag: the name of its values in help texts, and how to read one."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what `value` spells.

        Click reports the ValueError's sentence with the name of the flag.
        """
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise ValueError(f"{text!r:.80} is neither true nor false")
    return _BOOLEANS[text]


def _integer(text: str) -> int:
    """Read a 32-bit integer, also with a prefix such as 0x."""
    try:
        number = int(text, 0)
    except ValueError:
        raise ValueError(f"{text!r:.80} is not an integer") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{text:.80} does not fit into 32 bits")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r:.80} is not a number") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _switches(text: str) -> dict[str, bool]:
    """Read `A=true,B=false`."""
    switches = {}
    for item in _words(text):
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{item!r:.80} is not of the form NAME=true or NAME=false")
        switches[name.strip()] = _boolean(value.strip())
    return switches


def _patterns(text: str) -> tuple[dict[str, Any], ...]:
    """Read `PATTERN=LEVEL,...` into items of the configuration's logging.vmodule."""
    items = []
    for item in _words(text):
        pattern, _, level = item.partition("=")
        if not pattern or not (level.isascii() and level.isdigit()):
            raise ValueError(f"{item!r:.80} is not of the form PATTERN=LEVEL")
        items.append({"filePattern": pattern, "verbosity": _integer(level)})
    return tuple(items)


BOOL: Final = GoType("bool", _boolean)
DURATION: Final = GoType("duration", Duration.parse)
INT: Final = GoType("int", _integer)
NUMBER: Final = GoType("number", _number)
PATTERNS: Final = GoType("pattern=n,...", _patterns)
SWITCHES: Final = GoType("name=bool,...", _switches)
TEXT: Final = GoType("text", str)
# Go reads -v=2 as -v 2
VERBOSITY: Final = GoType("int", lambda text: _integer(text.removeprefix("=")))
WORDS: Final = GoType("text,...", _words)
