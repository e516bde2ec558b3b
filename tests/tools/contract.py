"""`make contract`: which tests claim which statement of the contract, and which statements none claims.

Exit code 1 when a MUST has no test, or a test claims a number that does not exist. Prints the claimed ones too with --all.
"""

import argparse
import contextlib
import io
import sys
from collections import defaultdict
from typing import NamedTuple

import pytest
from rich.console import Console
from rich.table import Table

from tests.support.paths import ROOT

TESTS = ROOT / "tests"


class Statement(NamedTuple):
    """One numbered statement."""

    number: str
    kind: str
    text: str


class Claims:
    """A pytest plugin that notes which test is marked with which number."""

    def __init__(self) -> None:
        self.by_number: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Collect the marks of all tests."""
        for item in items:
            for mark in item.iter_markers("contract"):
                for number in mark.args:
                    self.by_number[number].add(item.nodeid.partition("[")[0])


def statements() -> list[Statement]:
    """Read the list of statements."""
    lines = (TESTS / "contract.txt").read_text().splitlines()
    return [Statement(*line.split(maxsplit=2)) for line in lines if line and not line.startswith("#")]


def claims() -> dict[str, set[str]]:
    """Collect the tests, without running them."""
    found = Claims()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = pytest.main(["--collect-only", "-qq", str(TESTS)], plugins=[found])
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"the tests cannot be collected: {code!r}\n{output.getvalue()}")
    return found.by_number


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="print the claimed statements as well, with their tests")
    everything = parser.parse_args().all
    known, claimed = statements(), claims()
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("number", "kind", "statement", "tests", box=None, pad_edge=False)
    for each in known:
        tests = sorted(claimed.get(each.number, ()))
        if everything or (not tests and each.kind != "layout"):
            table.add_row(each.number, each.kind, each.text, "\n".join(tests) or "[red]none[/red]")
    console.print(table)
    missing = [each.number for each in known if each.kind == "MUST" and each.number not in claimed]
    unknown = sorted(claimed.keys() - {each.number for each in known})
    asserted = [each for each in known if each.kind != "layout"]
    covered = sum(each.number in claimed for each in asserted)
    console.print(
        f"{covered} of {len(asserted)} statements are claimed by a test; MUST without a test: {', '.join(missing) or 'none'}"
    )
    if unknown:
        console.print(f"tests claim numbers that do not exist: {', '.join(unknown)}")
    return 1 if missing or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
