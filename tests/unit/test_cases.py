"""Golden cases: what a Service becomes in the table, and what a change of it writes.

`make golden` writes them.
"""

from pathlib import Path

import pytest

from nftproxy.sources.manifests import Manifests
from tests.support.cases import CASES, WRITTEN, golden
from tests.support.paths import ROOT


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_case(case: Path) -> None:
    files = golden(case).files
    found = {name: (case / name).read_text() for name in WRITTEN if (case / name).exists()}
    assert found == files, "run `make golden` and look at the difference"
    assert files["before.elements"] or case.name == "example-service-cidr"


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_a_case_says_what_it_shows(case: Path) -> None:
    assert (case / "before.yaml").read_text().startswith("# ")


def test_every_example_is_a_case() -> None:
    examples = {path.stem for path in (ROOT / "examples").glob("*.yaml")} - {"nodes"}
    assert {case.name.removeprefix("example-") for case in CASES} >= examples


def test_manifests_of_cases_have_no_faults() -> None:
    for case in CASES:
        for name in ("before.yaml", "after.yaml"):
            if (case / name).exists():
                assert Manifests([case / name]).scan().problems == [], case
