"""What to do after the end of a list or a watch, whatever the reason.

Pure: no clock, no randomness, no connection.

What always holds: the last known resource version is kept unless the server no longer has it or the
stream was garbage. There is a pause between two requests, unless a watch lasted and ended in good
order. Pauses grow up to a limit and are random, so that a thousand nodes do not return at the same
time.
"""

import enum
from dataclasses import dataclass, replace
from typing import Final

from nftproxy.sources.resources import Resource
from nftproxy.sources.wire import Version

FIRST_PAUSE: Final = 0.8
GROWTH: Final = 1.5
"""The factor between two pauses: a restart of an API server takes ten or twenty seconds."""

LONGEST_PAUSE: Final = 30.0
LONGEST_PAUSE_DENIED: Final = 300.0
"""For an optional resource that is denied: nothing waits for it."""

LONGEST_RETRY_AFTER: Final = 120.0
"""The longest pause that a server may ask for: the data plane becomes stale meanwhile."""

STEADY: Final = 5.0
"""A watch that lasted this long, in seconds, shows that the problem before it is solved."""

BUSY: Final = 10.0
"""A watch with an object at least every this many seconds on average is busy."""


class FailureCause(enum.Enum):
    """How a list or a watch ended."""

    ENDED = "ended"
    """The server closed the stream in good order, as it does after `timeoutSeconds`."""

    BROKEN = "broken"
    """The connection failed, at any point."""

    SILENT = "silent"
    """The server was silent for too long."""

    REFUSED = "refused"
    """The server answered with another status than 200."""

    FAILED = "failed"
    """The stream had an error or garbage: continuing from the same version may repeat it."""


@dataclass(frozen=True, slots=True)
class RetryOutcome:
    """How a list or a watch ended.

    `code` is that of the Status for REFUSED and FAILED; `retry_after` is what the server asked for,
    in seconds. `lasted` is how long the watch lasted, 0 if it was refused or had not listed yet;
    `events` is its number of objects.
    """

    cause: FailureCause
    text: str = ""
    code: int = 0
    retry_after: float = 0.0
    lasted: float = 0.0
    events: int = 0


@dataclass(frozen=True, slots=True)
class RetryState:
    """The state of one resource.

    `version` None means that a list is due, `streaming` that the server may offer it as a stream.

    `failures` counts problems in a row, `expiries` lost versions in a row; `quiet` says that the
    last watch had next to no objects.
    """

    version: Version | None = None
    streaming: bool = True
    failures: int = 0
    expiries: int = 0
    quiet: bool = True


@dataclass(frozen=True, slots=True)
class RetryStep:
    """What to do next: pause, then continue from `state`; `renew` the credentials first."""

    state: RetryState
    pause: float
    renew: bool = False


def after(
    state: RetryState, outcome: RetryOutcome, resource: Resource, *, chance: float
) -> RetryStep:
    """Return what to do after `outcome`; `chance` is a random number from 0 to 1."""
    if outcome.lasted >= STEADY:
        state = replace(state, failures=0, expiries=0)
    if outcome.lasted:
        state = replace(state, quiet=outcome.events * BUSY < outcome.lasted)
    if outcome.cause is FailureCause.ENDED and outcome.lasted >= STEADY:
        return RetryStep(state, 0.0)
    listing = state.version is None
    if (
        listing
        and state.streaming
        and outcome.cause is FailureCause.REFUSED
        and outcome.code in {400, 422}
    ):
        # The server does not support streaming lists, or has them switched off
        return RetryStep(replace(state, streaming=False), 0.0)
    # A stream that ends or becomes silent before its list is complete may do so each time: a plain
    # list is safe.
    if listing and outcome.cause in {FailureCause.ENDED, FailureCause.SILENT, FailureCause.FAILED}:
        state = replace(state, streaming=False)
    if outcome.code == 410:
        # A server that says so is healthy: earlier failures, an outage for instance, are no reason
        # for a long pause.
        state = replace(state, version=None, failures=0, expiries=state.expiries + 1)
        return RetryStep(state, _pause(state.expiries, outcome, resource, chance))
    state = replace(
        state, version=None if _forgotten(outcome) else state.version, failures=state.failures + 1
    )
    return RetryStep(
        state, _pause(state.failures, outcome, resource, chance), renew=outcome.code == 401
    )


def watch_seconds(state: RetryState, resource: Resource, *, chance: float) -> int:
    """Return how long the server is asked to keep a watch.

    A quiet stream has to show a sign of life every 25 s. To tear it down would need a new
    connection with TLS, and lose the version, because the server sends a bookmark once a minute. So
    the server is asked to end the watch before that: if there is news, it sends a bookmark 2 s
    before the end (seen on 1.36), and the next watch continues on the same connection, without a
    list. Only a dead or frozen server stays silent. That is a request every 20 s for each stream;
    in comparison, every kubelet *writes* a lease every 10 s. A busy stream does not need it: it
    ends after 5 to 10 minutes, at random, so that nodes do not return together. So does one that
    starts with a list, which may take long.
    """
    if state.quiet and state.version is not None:
        return int(resource.silence * 0.8)
    return 300 + int(300 * chance)


def _forgotten(outcome: RetryOutcome) -> bool:
    """Whether the version is in doubt, so that everything has to be listed again."""
    match outcome.cause:
        case FailureCause.FAILED:
            return True
        case (
            FailureCause.REFUSED
        ):  # 400, 404, 422 and the like: the server does not accept the version
            return 400 <= outcome.code < 500 and outcome.code not in {401, 403, 408, 429}
        case _:
            return False


def _pause(failures: int, outcome: RetryOutcome, resource: Resource, chance: float) -> float:
    denied = resource.optional and outcome.code in {403, 404}
    longest = LONGEST_PAUSE_DENIED if denied else LONGEST_PAUSE
    # The exponent is limited because a month of outage would overflow a float.
    pause = min(FIRST_PAUSE * GROWTH ** min(failures - 1, 32), longest) * (1 + chance) / 2
    return max(pause, min(outcome.retry_after, LONGEST_RETRY_AFTER) * (1 + chance / 5))
