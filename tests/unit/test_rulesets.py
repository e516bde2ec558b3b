"""The files in rulesets/: what can be said of them without a kernel."""

import re
from pathlib import Path
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.configuration.settings import ALL, InterfaceNamePrefix
from nftproxy.table.program import Program, blocks
from tests.support.paths import ROOT
from tests.support.world import settings

FILES = sorted((ROOT / "rulesets").glob("*.nft"), key=lambda path: path.name)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_sets_and_maps_are_declared_by_typeof(file: Path) -> None:
    """Libraries from 1.1.2 on store with `type` what those before 1.1.4 cannot read.

    Any nft on the host then ends with signal 11.

    With `typeof` all of 1.0.6 to 1.1.7 list what any of them wrote.
    """
    declared = {
        name: block
        for name, block in blocks(file.read_text()).items()
        if not re.match(r"(\[\w+\] )?chain", block)
    }
    assert not {
        name
        for name, block in declared.items()
        if not re.search(r"^    typeof ", block, re.MULTILINE)
    }
    assert not {
        name for name, block in declared.items() if re.search(r"^    type ", block, re.MULTILINE)
    }


def test_there_are_declarations() -> None:
    declared = [
        block
        for file in FILES
        for block in blocks(file.read_text()).values()
        if not re.match(r"(\[\w+\] )?chain", block)
    ]
    assert len(declared) > 20


def test_no_name_stands_for_two_things() -> None:
    """Neither a chain and a map, nor names that differ in the hyphen alone."""
    names: dict[str, str] = {}
    for file in FILES:
        for kind, name in re.findall(
            r"^(?:\[\w+\] )?(set|map|chain) (\S+) \{", file.read_text(), re.MULTILINE
        ):
            assert names.setdefault(name.replace("-", "_"), f"{kind} {name}") == f"{kind} {name}"


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"nodeports": dict.fromkeys(Family, ALL)},
        {"detector": None},
        {"detector": InterfaceNamePrefix("veth"), "masquerade_all": True},
        {"log_refusals": True},
        {"no_masquerade": ["172.16.0.0/12", "fd00:172::/32", "192.168.0.0/16"]},
        {"reset_gone": True},
    ],
    ids=[
        *("listed", "all addresses", "no detector", "interface"),
        *("refusals logged", "sparing", "gone reset"),
    ],
)
def test_the_program_begins_with_the_hooks_and_says_each_header_once(
    chosen: dict[str, Any],
) -> None:
    text = Program(settings(**chosen)).text({Family.IPv4: [8, 24]})
    assert text.startswith("# ---- hooks")
    headers = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headers) == len(set(headers))
    assert not re.search(r"^\s*\[|\$", text, re.MULTILINE), "no marker and no variable is left"


def test_markers_are_those_that_the_readme_explains() -> None:
    explained = set(re.findall(r"`\[([\w ]+)\]`", (ROOT / "rulesets/README.md").read_text()))
    used = {mark for file in FILES for mark in re.findall(r"\[([\w ]+)\]", file.read_text())}
    assert used == explained
