"""From checks and facts to results. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nftproxy.doctor.facts import Facts
from nftproxy.doctor.model import CheckState, Finding, Result, UnknownError


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the node; `judge` answers it from facts alone."""

    group: str
    name: str
    judge: Callable[[Facts], Finding]


def judge(checks: Iterable[Check], facts: Facts) -> list[Result]:
    """Answer all questions, in order."""
    return [_judged(check, facts) for check in checks]


def _judged(check: Check, facts: Facts) -> Result:
    try:
        found = check.judge(facts)
    except UnknownError as error:
        found = Finding(CheckState.UNCHECKED, str(error))
    return Result(check.group, check.name, found.state, found.found, found.means, found.cures)
