"""Plain English: words that no text for people may have, and the width of pages."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

WORDS = {
    r"tells?|telling|told": "say, show, report; or recognize, distinguish",
    r"anew": "again, new",
    r"so many": "a number of, at most N",
    r"of then": "at that time",
    r"(?:is|are) (?-i:none)": "is invalid, there is no",
    r"as far as anybody knows": "",
    r"for those who": "",
    r"carr(?:y|ies) on": "continue",
    r"how (?:it|they) (?:is|are) called": "its name",
    r"what (?:goes|comes|came|went)(?! (?:to|through)\b)": "removals, additions",
    r"but for": "except for",
    r"have (?:an?|the|each|it|every|all|others|them|one) (?:\S+ ){0,3}?"
    r"(?:\w+ed|done|made|written|run|read|put|set|gone)": "the verb itself",
    r"(?:endpoint|service|element|chain|object|node|client|entry|entries|rule|table)s? "
    r"(?:goes|go|comes|come|went|came)"
    r"(?! (?:to|through|back|on)\b)": "added, removed",
}
"""What to avoid, and what to say instead."""

EXCEPTIONS: dict[str, str] = {}
"""Phrases that are right as they stand, each with its reason."""

_WORDS = re.compile("|".join(rf"\b(?:{words})\b" for words in WORDS), re.IGNORECASE)
_PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *ROOT.glob("*/README.md"),
    *ROOT.glob("tests/*/*/README.md"),
]
_CODE = sorted((ROOT / "nftproxy").rglob("*.py"))


def prose(page: str) -> Iterator[str]:
    """The lines of a page outside of code."""
    inside = False
    for line in page.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside and not line.startswith("    "):
            yield line


def texts(source: str) -> Iterator[str]:
    """All texts and comments of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    comments = (
        each.string
        for each in tokenize.generate_tokens(io.StringIO(source).readline)
        if each.type == tokenize.COMMENT
    )
    yield re.sub(r"\n# ?", " ", "\n".join(comments))


def avoided(text: str) -> list[str]:
    """What a text has of the words to avoid."""
    text = re.sub(r"`[^`]*`", "", " ".join(text.split()))
    for phrase in EXCEPTIONS:
        text = text.replace(phrase, "")
    return [text[max(0, found.start() - 30) : found.end() + 30] for found in _WORDS.finditer(text)]


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("Have an element added.", True),
        ("what is none is left out", True),
        ("What goes takes 6 ms more than what comes", True),
        ("so many seconds", True),
        ("Add an element; it has been added.", False),
        ("Elements go through netlink.", False),
        ("`anew`", False),
    ],
)
def test_words_are_found(text: str, *, bad: bool) -> None:
    assert bool(avoided(text)) is bad


@pytest.mark.parametrize("page", _PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_plain_english(page: Path) -> None:
    assert avoided("\n".join(prose(page.read_text()))) == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_100_columns_wide(page: Path) -> None:
    """Tables and what cannot be broken, such as URLs, may be wider."""
    wide = [
        line
        for line in prose(page.read_text())
        if len(line) > 100 and not line.startswith(("|", "  `"))
    ]
    assert [line for line in wide if " " in line.strip(" -*")[:100]] == []


@pytest.mark.parametrize("path", _CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_speaks_plain_english(path: Path) -> None:
    assert [found for text in texts(path.read_text()) for found in avoided(text)] == []


def test_the_man_page_is_plain_english() -> None:
    assert avoided((ROOT / "share/man/man1/nftproxy.1").read_text()) == []
