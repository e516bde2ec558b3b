"""What follows after a list or a watch has ended, as a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.sources.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, Resource, own_node
from nftproxy.sources.retry import (
    LONGEST_PAUSE,
    LONGEST_PAUSE_DENIED,
    LONGEST_RETRY_AFTER,
    FailureCause,
    RetryOutcome,
    RetryState,
    RetryStep,
    after,
    watch_seconds,
)

LISTING = RetryState()
LISTING_PLAINLY = RetryState(streaming=False)
WATCHING = RetryState(version="5")


def refused(code: int, retry_after: float = 0) -> RetryOutcome:
    return RetryOutcome(FailureCause.REFUSED, code=code, retry_after=retry_after)


@pytest.mark.parametrize(
    ("state", "outcome", "expected"),
    [
        # In good order
        (
            WATCHING,
            RetryOutcome(FailureCause.ENDED, lasted=20),
            RetryStep(RetryState("5", quiet=True), 0),
        ),
        (
            WATCHING,
            RetryOutcome(FailureCause.ENDED, lasted=300, events=31),
            RetryStep(RetryState("5", quiet=False), 0),
        ),
        (
            RetryState("5", failures=7),
            RetryOutcome(FailureCause.ENDED, lasted=20),
            RetryStep(RetryState("5"), 0),
        ),
        (WATCHING, RetryOutcome(FailureCause.ENDED), RetryStep(RetryState("5", failures=1), 0.8)),
        (
            RetryState("5", failures=3),
            RetryOutcome(FailureCause.ENDED),
            RetryStep(RetryState("5", failures=4), 2.7),
        ),
        # The connection: the place is kept
        (WATCHING, RetryOutcome(FailureCause.BROKEN), RetryStep(RetryState("5", failures=1), 0.8)),
        (
            WATCHING,
            RetryOutcome(FailureCause.SILENT, lasted=25),
            RetryStep(RetryState("5", failures=1), 0.8),
        ),
        (
            RetryState("5", failures=9),
            RetryOutcome(FailureCause.BROKEN, lasted=60),
            RetryStep(RetryState("5", failures=1), 0.8),
        ),
        (
            RetryState("5", failures=99_999),
            RetryOutcome(FailureCause.BROKEN),
            RetryStep(RetryState("5", failures=100_000), LONGEST_PAUSE),
        ),
        (LISTING, RetryOutcome(FailureCause.BROKEN), RetryStep(RetryState(failures=1), 0.8)),
        # Refusals that leave the place valid
        (WATCHING, refused(401), RetryStep(RetryState("5", failures=1), 0.8, renew=True)),
        (WATCHING, refused(403), RetryStep(RetryState("5", failures=1), 0.8)),
        (WATCHING, refused(429, 5), RetryStep(RetryState("5", failures=1), 6)),
        (
            WATCHING,
            refused(503, 1e9),
            RetryStep(RetryState("5", failures=1), LONGEST_RETRY_AFTER * 1.2),
        ),
        (WATCHING, refused(500), RetryStep(RetryState("5", failures=1), 0.8)),
        # The server cannot go on from there
        (WATCHING, refused(410), RetryStep(RetryState(expiries=1), 0.8)),
        (RetryState("5", failures=99), refused(410), RetryStep(RetryState(expiries=1), 0.8)),
        (RetryState("5", expiries=2), refused(410), RetryStep(RetryState(expiries=3), 1.8)),
        (
            RetryState("5", expiries=2),
            RetryOutcome(FailureCause.FAILED, code=410, lasted=10),
            RetryStep(RetryState(expiries=1), 0.8),
        ),
        (WATCHING, refused(400), RetryStep(RetryState(failures=1), 0.8)),
        (
            WATCHING,
            RetryOutcome(FailureCause.FAILED, code=410),
            RetryStep(RetryState(expiries=1), 0.8),
        ),
        (
            WATCHING,
            RetryOutcome(FailureCause.FAILED, code=500),
            RetryStep(RetryState(failures=1), 0.8),
        ),
        # Streaming lists
        (LISTING, refused(422), RetryStep(LISTING_PLAINLY, 0)),
        (LISTING, refused(400), RetryStep(LISTING_PLAINLY, 0)),
        (LISTING_PLAINLY, refused(400), RetryStep(RetryState(streaming=False, failures=1), 0.8)),
        (
            LISTING,
            RetryOutcome(FailureCause.ENDED),
            RetryStep(RetryState(streaming=False, failures=1), 0.8),
        ),
        (
            LISTING,
            RetryOutcome(FailureCause.SILENT),
            RetryStep(RetryState(streaming=False, failures=1), 0.8),
        ),
        (LISTING, refused(503), RetryStep(RetryState(failures=1), 0.8)),
        (WATCHING, RetryOutcome(FailureCause.SILENT), RetryStep(RetryState("5", failures=1), 0.8)),
    ],
    ids=lambda each: str(each) if not isinstance(each, RetryStep) else "",
)
def test_after(state: RetryState, outcome: RetryOutcome, expected: RetryStep) -> None:
    step = after(state, outcome, SERVICES, chance=1)
    assert (step.state, step.renew) == (expected.state, expected.renew)
    assert step.pause == pytest.approx(expected.pause)


def test_denied_for_good() -> None:
    pauses = {
        (resource.name, code): after(
            RetryState(failures=100), refused(code), resource, chance=1
        ).pause
        for resource in (SERVICES, SERVICE_CIDRS)
        for code in (403, 404, 500)
    }
    assert pauses == {
        ("services", 403): LONGEST_PAUSE,
        ("services", 404): LONGEST_PAUSE,
        ("services", 500): LONGEST_PAUSE,
        ("servicecidrs", 403): LONGEST_PAUSE_DENIED,
        ("servicecidrs", 404): LONGEST_PAUSE_DENIED,
        ("servicecidrs", 500): LONGEST_PAUSE,
    }


OUTCOMES = st.builds(
    RetryOutcome,
    st.sampled_from(FailureCause),
    code=st.sampled_from([0, 400, 401, 403, 404, 410, 422, 429, 500, 503]),
    retry_after=st.floats(0, 1e9),
    lasted=st.floats(0, 1000),
    events=st.integers(0, 1000),
)


@given(outcomes=st.lists(OUTCOMES, min_size=5), chances=st.floats(0, 1))
def test_never_a_spin(outcomes: list[RetryOutcome], chances: float) -> None:
    """Whatever happens: a pause is left out only after a watch that stood for a while, and once,
    when streaming lists are refused.
    """
    state, free = LISTING, 0
    for outcome in outcomes:
        step = after(state, outcome, SERVICES, chance=chances)
        assert step.pause <= LONGEST_RETRY_AFTER * 1.2
        if not step.pause and outcome.lasted < 5:
            free += 1
        assert step.pause == 0 or step.pause >= 0.4
        state = step.state
    assert free <= 1


@given(chance=st.floats(0, 1, exclude_max=True), failures=st.integers(0, 10**6))
def test_pauses_are_spread(chance: float, failures: int) -> None:
    most = after(
        RetryState("5", failures=failures), RetryOutcome(FailureCause.BROKEN), SERVICES, chance=1
    ).pause
    assert (
        most / 2
        <= after(
            RetryState("5", failures=failures),
            RetryOutcome(FailureCause.BROKEN),
            SERVICES,
            chance=chance,
        ).pause
        <= most
    )


@pytest.mark.parametrize(
    "resource",
    [SERVICES, ENDPOINT_SLICES, SERVICE_CIDRS, own_node("n")],
    ids=lambda each: each.name,
)
@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (RetryState("5", quiet=True), 20),
        (RetryState("5", quiet=False), 450),
        (RetryState(None, quiet=True), 450),
    ],
    ids=["quiet", "busy", "with_a_list"],
)
def test_watch_seconds(state: RetryState, resource: Resource, expected: int) -> None:
    assert watch_seconds(state, resource, chance=0.5) == expected
