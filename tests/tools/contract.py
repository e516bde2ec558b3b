"""`make contract`: which tests claim which statement of the contract, and which statements none
claims.

Exit code 1 when a MUST has no test, or a test claims a number that does not exist. Prints the
claimed ones too with --all.
"""

import argparse
import contextlib
import io
import re
import sys
from collections import defaultdict
from textwrap import shorten
from typing import NamedTuple

import pytest
from rich.console import Console
from rich.table import Table

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
PAGE = ROOT / "docs/contract.md"

_ANCHOR = re.compile(r'<a id="c-([0-9a-z-]+)"></a>')
_STATEMENT = re.compile(rf"^(?:\* |\| ){_ANCHOR.pattern}(\S+) (.*)")
_HEADING = re.compile(r"^#+ (\S+) (.*)")
_ROW = re.compile(r"^(?:\| (?!<a id|# \|)|1\. )")


class Statement(NamedTuple):
    """One numbered statement.

    Its kind is MUST (visible from outside), plain (asserted too), quirk (a weakness of the
    original) or layout (how the original arranges its rules, which nobody has to prove).
    """

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


def anchors() -> set[str]:
    """Return everything that can be cited: statements, sections and chapters."""
    return {found.replace("-", ".") for found in _ANCHOR.findall(PAGE.read_text())}


def statements() -> list[Statement]:
    """Read the page: numbered statements, and sections whose rows carry no numbers of their own."""
    found: list[Statement] = []
    heading = None
    for line in PAGE.read_text().splitlines():
        if match := _HEADING.match(line):
            numbered = match[1][0].isdigit()
            heading = (
                Statement(match[1], _kind(match[2], match[2]), f"{match[2]} (table)")
                if numbered
                else None
            )
        elif heading and (match := _STATEMENT.match(line)):
            found.append(Statement(match[2], _kind(match[3], heading.text), match[3]))
        elif heading and _ROW.match(line) and heading not in found:
            found.append(heading)
        elif found and line.startswith("  "):
            text = f"{found[-1].text} {line.strip()}"
            found[-1] = Statement(
                found[-1].number, _kind(text, heading.text if heading else ""), text
            )
    return found


def _kind(text: str, heading: str) -> str:
    if text.startswith("MUST") or "MUST NOT" in text:
        return "MUST"
    if "[Q]" in text:
        return "quirk"
    return "layout" if "[L]" in text or "[L]" in heading else "plain"


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
    parser.add_argument(
        "--all", action="store_true", help="print the claimed statements as well, with their tests"
    )
    everything = parser.parse_args().all
    known, claimed = statements(), claims()
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("number", "kind", "statement", "tests", box=None, pad_edge=False)
    for each in known:
        tests = sorted(claimed.get(each.number, ()))
        if everything or (not tests and each.kind != "layout"):
            table.add_row(
                each.number,
                each.kind,
                shorten(each.text, 100, placeholder=" ..."),
                "\n".join(tests) or "[red]none[/red]",
            )
    console.print(table)
    missing = [each.number for each in known if each.kind == "MUST" and each.number not in claimed]
    unknown = sorted(claimed.keys() - {each.number for each in known})
    asserted = [each for each in known if each.kind != "layout"]
    covered = sum(each.number in claimed for each in asserted)
    console.print(
        f"{covered} of {len(asserted)} statements are claimed by a test; MUST without a test: "
        f"{', '.join(missing) or 'none'}"
    )
    if unknown:
        console.print(f"tests claim numbers that do not exist: {', '.join(unknown)}")
    return 1 if missing or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
