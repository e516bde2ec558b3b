"""README and docs: what they say to type prints what they say it does, and what they link to is
there.
"""

import re
from pathlib import Path

import pytest

from tests.tools.consoles import PROJECT, Step, play, steps

PAGES = sorted([PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")])
OTHERS = [
    PROJECT / "vagrant/README.md",
    PROJECT / "rulesets/README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "SECURITY.md",
]
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize(
    ("expected", "printed", "right"),
    [
        pytest.param("one", "one", True, id="same"),
        pytest.param("one", "two", False, id="other"),
        pytest.param("one", "one\ntwo", False, id="more"),
        pytest.param("", "one", False, id="something for nothing"),
        pytest.param("", "", True, id="nothing"),
        pytest.param("a ... c", "a b b c", True, id="any text"),
        pytest.param("a ... c", "a b\nc", False, id="any text ends with the line"),
        pytest.param("one\n...\nthree", "one\ntwo\ntwo\nthree", True, id="any lines"),
        pytest.param("one\n...\nthree", "one\nthree", True, id="no lines are any lines"),
        pytest.param("one\n...\nthree", "one\ntwo", False, id="last line missing"),
        pytest.param("one\n...", "one\ntwo\nthree", True, id="any end"),
        pytest.param("one\n...", "two\nthree", False, id="any end, wrong start"),
        pytest.param("...\nend", "one\nend", True, id="any start"),
        pytest.param("a b", "a     b", True, id="columns move"),
        pytest.param("a+b", "aab", False, id="no regular expressions"),
    ],
)
def test_what_is_printed_is_compared(expected: str, printed: str, *, right: bool) -> None:
    assert Step("true", expected, 1).matches(printed) is right


def test_console_blocks_are_taken_apart() -> None:
    text = "x\n```console\n$ one\nhere\n\nthere\n$ two\n> more\n```\n```text\n$ three\n```\n"
    assert steps(text) == [Step("one", "here\n\nthere", 3), Step("two\nmore", "", 7)]


@pytest.mark.parametrize("page", [page for page in PAGES if steps(page.read_text())], ids=name)
@pytest.mark.timeout(400)
def test_pages_print_what_they_say(page: Path) -> None:
    for step, printed in play(page):
        assert step.matches(printed), (
            f"{name(page)}:{step.line}: $ {step.command}\nprinted:\n{printed}\nbut should "
            f"print:\n{step.expected}"
        )


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            found = page.parent / target if target else page
            assert found.exists(), f"{name(page)} links to {target}"
            if anchor:
                assert anchor in _anchors(found.read_text()), (
                    f"{name(page)} links to {target}#{anchor}"
                )


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    named = re.findall(r'<a id="([^"]+)">', text)
    return {
        *named,
        *(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings),
    }
