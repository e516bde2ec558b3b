"""Results of Kubernetes' tests: read from what they report, put side by side.

Pure: reports arrive as text.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree as ET

_PREFIX = "[It] [sig-network] "
_SUFFIX = re.compile(r"(?: \[sig-network[^]]*\]| \[[A-Z]\w*:[^]]*\])+$|,? ?\[sig-network.*$")


class Verdict(StrEnum):
    """What became of a test."""

    PASSED = "passed"
    AGAIN = "passed, alone"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Result:
    """The verdict on a test, how long it took, and what it said if it did not pass."""

    verdict: Verdict
    seconds: float
    reason: str = ""


Results = Mapping[str, Result]


def read(report: str) -> dict[str, Result]:
    """Return the results in a JUnit report, by the name of the test.

    Tests that were not chosen are reported as skipped without a reason; they are left out.
    """
    found: dict[str, Result] = {}
    for case in ET.fromstring(report).iter("testcase"):  # noqa: S314 - our own file
        name, status = case.get("name", ""), case.get("status", "")
        if not name.startswith(_PREFIX):
            continue
        seconds = float(case.get("time") or 0)
        skipped = case.find("skipped")
        if status == "passed":
            result = Result(Verdict.PASSED, seconds)
        elif status == "skipped":
            reason = skipped.get("message", "") if skipped is not None else ""
            reason = reason.removeprefix("skipped").removeprefix(" - ").split("\n")[0]
            if not reason:
                continue
            result = Result(Verdict.SKIPPED, seconds, reason)
        else:
            failure = case.find("failure")
            said = (failure.text or "" if failure is not None else "").partition("\nIn [It]")[0]
            reason = " ".join(said.removeprefix("[FAILED]").split()) or status
            result = Result(Verdict.FAILED, seconds, reason[:200])
        found[short(name)] = result
    return found


def short(name: str) -> str:
    """Return the name of a test without what all have in common, and without its labels."""
    return _SUFFIX.sub("", name.removeprefix(_PREFIX)).strip()


def again(first: Results, second: Results) -> dict[str, Result]:
    """Return the results after those that failed ran once more, alone."""
    return {
        name: Result(Verdict.AGAIN, second[name].seconds)
        if result.verdict is Verdict.FAILED
        and name in second
        and second[name].verdict is Verdict.PASSED
        else result
        for name, result in first.items()
    }


def names(results: Results, *verdicts: Verdict) -> list[str]:
    """Return the names of the tests with one of the verdicts."""
    return sorted(name for name, result in results.items() if result.verdict in verdicts)


def passed(results: Results) -> int:
    """Return how many have passed."""
    return len(names(results, Verdict.PASSED, Verdict.AGAIN))


def ran(results: Results) -> int:
    """Return how many have run to an end, good or bad."""
    return len(results) - len(names(results, Verdict.SKIPPED))


def worse(ours: Results, control: Results) -> list[str]:
    """Return the names of the tests that fail here and pass with the control."""
    good = set(names(control, Verdict.PASSED, Verdict.AGAIN))
    return [name for name in names(ours, Verdict.FAILED) if name in good]


def focus(failed: Iterable[str]) -> str:
    """Return the regular expression that chooses these tests."""
    return "|".join(re.escape(name) for name in failed)
