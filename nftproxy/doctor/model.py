"""What a check says, and what it may not know. Pure.

A fact that could not be gathered is `Unknown`, with the reason. A check that needs it says "not
checked" with that reason: it never guesses.
"""

import enum
from dataclasses import dataclass
from typing import TypeVar

import msgspec

T = TypeVar("T")


class CheckState(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"
    UNCHECKED = "not checked"


class Finding(msgspec.Struct, frozen=True):
    """What a check found, what it means for Services, and the commands that cure it, in order."""

    state: CheckState
    found: str
    means: str = ""
    cures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unknown:
    """A fact that could not be gathered."""

    reason: str


class UnknownError(Exception):
    """A check needs a fact that is not known; the text is the reason."""


class Result(msgspec.Struct, frozen=True):
    """A check and its finding, as `--output json` prints it."""

    group: str
    check: str
    state: CheckState
    found: str
    means: str = ""
    cures: tuple[str, ...] = ()


def known(fact: T | Unknown) -> T:
    """Return a fact; UnknownError with the reason when nobody knows it."""
    if isinstance(fact, Unknown):
        raise UnknownError(fact.reason)
    return fact


def ok(found: str) -> Finding:
    """Return that all is well."""
    return Finding(CheckState.OK, found)


def warning(found: str, means: str, *cures: str) -> Finding:
    """Return what is doubtful, or wrong without stopping traffic now."""
    return Finding(CheckState.WARNING, found, means, tuple(filter(None, cures)))


def bad(found: str, means: str, *cures: str) -> Finding:
    """Return what makes Services fail, or will at the next change."""
    return Finding(CheckState.BAD, found, means, tuple(filter(None, cures)))
