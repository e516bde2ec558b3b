"""The contract: every number that is cited exists, code says the rule before the number, and users
never see a number.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.tools.contract import anchors, statements

CODE = sorted((ROOT / "nftproxy").rglob("*.py"))
PYTHON = sorted(
    path
    for folder in ("nftproxy", "tests", "release", "docs")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "rulesets").iterdir()]

_NUMBER = r"\d+(?:\.\d+)+[a-z]?"
_CITED = re.compile(rf"[Cc]ontract ((?:(?:{_NUMBER}|\d+|Appendix [AB])(?:, | and | to |/)?)+)")
_BARE = re.compile(r"\((\d+\.\d+\.\d+[a-z]?(?:(?:, | to )\d+\.\d+\.\d+[a-z]?)*)\)")
"""A number that follows an earlier citation in the same text."""
_LINKED = re.compile(r"contract\.md#c-([0-9a-z-]+)")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Texts that stand alone.

    Docstrings of modules, classes and functions, and those below a constant.
    """
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.value


def help_texts(tree: ast.Module) -> Iterator[str]:
    """The docstrings that click prints."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            "command" in ast.unparse(d) or "group" in ast.unparse(d) for d in node.decorator_list
        ):
            yield ast.get_docstring(node) or ""


def shown(tree: ast.Module) -> Iterator[str]:
    """What a user may see: all texts but docstrings, and those docstrings that are help."""
    hidden = {id(text) for text in docstrings(tree)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in hidden
        ):
            yield node.value
    yield from help_texts(tree)


def numbers(text: str) -> set[str]:
    found = {
        number
        for cited in _CITED.findall(text)
        for number in re.findall(rf"{_NUMBER}|\b\d+\b|Appendix [AB]", cited)
    }
    return {number.lower().replace(" ", ".") for number in found}


def test_the_page_is_read_whole() -> None:
    known = {each.number: each for each in statements()}
    assert len(known) == len(statements()), "a number stands twice"
    assert known.keys() <= anchors()
    assert known["2.3.8"].text.endswith("only rule 3 then ends in a drop.")
    kinds = {
        number: known[number].kind
        for number in ("1.1.9", "2.5.1", "2.2", "1.5.2", "5.4.1", "5.2.1")
    }
    assert kinds == {
        "1.1.9": "MUST",
        "2.5.1": "MUST",
        "2.2": "plain",
        "1.5.2": "quirk",
        "5.4.1": "layout",
        "5.2.1": "MUST",
    }


@pytest.mark.parametrize("path", [*PYTHON, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_number_cited_exists(path: Path) -> None:
    text = re.sub(r"\s+#? *", " ", path.read_text())
    cited = numbers(text) | {each.replace("-", ".") for each in _LINKED.findall(text)}
    if path.suffix == ".py" and path.name != Path(__file__).name:
        cited |= {number for bare in _BARE.findall(text) for number in re.findall(_NUMBER, bare)}
        marks = (
            node
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.contract")
        )
        cited |= {
            argument.value
            for mark in marks
            for argument in mark.args
            if isinstance(argument, ast.Constant)
        }
    assert cited - anchors() == set()


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_say_the_rule_in_words_and_the_number_last(path: Path) -> None:
    for text in docstrings(parsed(path)):
        outside = re.sub(r"\([^()]*\)", "", str(text.value))
        assert not numbers(outside), (
            f"line {text.lineno}: the number belongs in brackets, after the rule"
        )
        if numbers(str(text.value)):
            assert len(re.findall(r"[a-z]{2,}", outside)) >= 3, (
                f"line {text.lineno} is only a number"
            )


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_users_see_no_number(path: Path) -> None:
    known = {number for number in anchors() if number.count(".") == 2}
    for text in shown(parsed(path)):
        assert not re.search(r"\b[Cc]ontract\b", text)
        assert not known & set(
            re.findall(rf"(?<!libnftables )(?<![\w.]){_NUMBER}(?![\w./])", text)
        ), text
