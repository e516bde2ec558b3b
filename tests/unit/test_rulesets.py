"""The files in rulesets/: what can be said of them without a kernel."""

import re
from pathlib import Path

import pytest

from nftproxy.table.program import blocks
from tests.support.paths import ROOT

FILES = sorted((ROOT / "rulesets").glob("*.nft"), key=lambda path: path.name)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_sets_and_maps_are_declared_by_typeof(file: Path) -> None:
    """Libraries from 1.1.2 on store with `type` what those before 1.1.4 cannot read: any nft on the host then ends with signal 11.

    With `typeof` all of 1.0.6 to 1.1.7 list what any of them wrote.
    """
    declared = {name: block for name, block in blocks(file.read_text()).items() if not block.startswith("chain")}
    assert not {name for name, block in declared.items() if not re.search(r"^    typeof ", block, re.MULTILINE)}
    assert not {name for name, block in declared.items() if re.search(r"^    type ", block, re.MULTILINE)}


def test_there_are_declarations() -> None:
    declared = [block for file in FILES for block in blocks(file.read_text()).values() if not block.startswith("chain")]
    assert len(declared) > 20
