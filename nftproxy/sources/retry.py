"""What to do after a list or a watch has come to an end, for whatever reason. Pure: no clock, no dice, no connection.

What always holds: what the server said last is not doubted (the place in the history is kept) unless the server itself
forgot it or the stream was garbage; nothing is asked twice without a pause in between, unless a watch stood for a while and ended in
good order; pauses grow up to a limit and are spread at random, so that a thousand nodes do not come back all at once.
"""

import enum
from dataclasses import dataclass, replace
from typing import Final

from nftproxy.sources.resources import Resource
from nftproxy.sources.wire import Version

FIRST_PAUSE: Final = 0.8
GROWTH: Final = 1.5
"""Each pause is that much longer than the one before: an API server that restarts is away for ten or twenty seconds."""

LONGEST_PAUSE: Final = 30.0
LONGEST_PAUSE_DENIED: Final = 300.0
"""For what is optional and denied: nobody is waiting for it."""

LONGEST_RETRY_AFTER: Final = 120.0
"""A server may ask for patience, but not forever: the data plane grows stale meanwhile."""

STEADY: Final = 5.0
"""A watch that stood this long, in seconds, shows that the trouble before it is over."""

BUSY: Final = 10.0
"""A watch that brings an object every so many seconds on average is busy."""


class Cause(enum.Enum):
    """How a list or a watch came to its end."""

    ENDED = "ended"
    """The server closed the stream in good order, as it does after `timeoutSeconds`."""

    BROKEN = "broken"
    """The connection failed, at any point."""

    SILENT = "silent"
    """Nothing came for too long."""

    REFUSED = "refused"
    """The server answered with another status than 200."""

    FAILED = "failed"
    """The stream itself brought an error or garbage: reading on from the same place may bring it again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a list or a watch came to its end.

    `code` is that of the Status for REFUSED and FAILED; `retry_after` what the server asked for, in seconds; `lasted` how
    long the watch stood, 0 if it was refused or was still about to list; `events` how many objects it brought.
    """

    cause: Cause
    text: str = ""
    code: int = 0
    retry_after: float = 0.0
    lasted: float = 0.0
    events: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """Where one resource stands: `version` None means that a list is due, `streaming` that the server may offer it as a stream.

    `failures` counts the trouble in a row, `expiries` how often the place was lost in a row; `quiet` says that the last watch
    brought next to nothing.
    """

    version: Version | None = None
    streaming: bool = True
    failures: int = 0
    expiries: int = 0
    quiet: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next: pause, then go on from `state`; `renew` the credentials first."""

    state: State
    pause: float
    renew: bool = False


def after(state: State, outcome: Outcome, resource: Resource, *, chance: float) -> Step:
    """Return what to do after `outcome`; `chance` is a random number from 0 to 1."""
    if outcome.lasted >= STEADY:
        state = replace(state, failures=0, expiries=0)
    if outcome.lasted:
        state = replace(state, quiet=outcome.events * BUSY < outcome.lasted)
    if outcome.cause is Cause.ENDED and outcome.lasted >= STEADY:
        return Step(state, 0.0)
    listing = state.version is None
    if listing and state.streaming and outcome.cause is Cause.REFUSED and outcome.code in {400, 422}:
        return Step(replace(state, streaming=False), 0.0)  # the server does not know streaming lists, or has them switched off
    # A stream that ends or falls silent before its list is complete may do so each time: a plain list is the safe way.
    if listing and outcome.cause in {Cause.ENDED, Cause.SILENT, Cause.FAILED}:
        state = replace(state, streaming=False)
    if outcome.code == 410:
        # A server that says so is well: what failed before, an outage for instance, is no reason to wait for long.
        state = replace(state, version=None, failures=0, expiries=state.expiries + 1)
        return Step(state, _pause(state.expiries, outcome, resource, chance))
    state = replace(state, version=None if _forgotten(outcome) else state.version, failures=state.failures + 1)
    return Step(state, _pause(state.failures, outcome, resource, chance), renew=outcome.code == 401)


def watch_seconds(state: State, resource: Resource, *, chance: float) -> int:
    """Return how long the server is asked to let a watch stand.

    A quiet stream that has to be heard of every 25 s would have to be torn down and built up again, TLS and all, and it would lose its
    place, since bookmarks come once a minute. So the server is asked to end it shortly before that: if there is news, it sends a
    bookmark 2 s before the end (seen on 1.36), and the next watch uses the same connection and goes on from there, without a list.
    Only a server that is dead or frozen stays silent. That is a request every 20 s for each stream; in comparison, every
    kubelet *writes* a lease every 10 s. A busy stream needs none of that: it ends after 5 to 10 minutes, at random, so that nodes do
    not come back together. So does one that begins with a list, which may take long.
    """
    if state.quiet and state.version is not None:
        return int(resource.silence * 0.8)
    return 300 + int(300 * chance)


def _forgotten(outcome: Outcome) -> bool:
    """Whether to doubt the place in the history, so that everything has to be listed again."""
    match outcome.cause:
        case Cause.FAILED:
            return True
        case Cause.REFUSED:  # 400, 404, 422 and the like: the server can make nothing of the version
            return 400 <= outcome.code < 500 and outcome.code not in {401, 403, 408, 429}
        case _:
            return False


def _pause(failures: int, outcome: Outcome, resource: Resource, chance: float) -> float:
    denied = resource.optional and outcome.code in {403, 404}
    longest = LONGEST_PAUSE_DENIED if denied else LONGEST_PAUSE
    # The exponent is limited because a month of outage would overflow a float.
    pause = min(FIRST_PAUSE * GROWTH ** min(failures - 1, 32), longest) * (1 + chance) / 2
    return max(pause, min(outcome.retry_after, LONGEST_RETRY_AFTER) * (1 + chance / 5))
