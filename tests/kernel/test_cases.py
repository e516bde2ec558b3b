"""Golden cases against the kernel: it holds, before and after a change, what their files say."""

import subprocess
from pathlib import Path

import pytest

from nftproxy.lab.namespace import enter
from nftproxy.sources.delivery import deliver
from nftproxy.sources.manifests import Manifests
from nftproxy.sync.table import Table
from nftproxy.table import schema
from tests.support.cases import CASES, SETTINGS, listed
from tests.support.tables import contents, new_namespace, table_in

CHANGES = [case for case in CASES if (case / "after.yaml").exists()]


def held(table: Table) -> list[str]:
    """What the kernel holds of Services, as the files have it."""
    found = {
        name: items
        for name, items in contents(table).items()
        if any(schema.is_compared(name, family) for family in SETTINGS.families)
    }
    return sorted(listed(found))


def bring(table: Table, manifests: Path) -> None:
    """Deliver the objects of a file, and no others, and sync."""
    deliver(table.store, Manifests([manifests]).scan(), SETTINGS.node_name)
    for family in SETTINGS.families:
        assert table.sync(family, []).refused == {}


@pytest.mark.parametrize("case", CHANGES, ids=lambda path: path.name)
def test_the_kernel_holds_what_the_case_says(case: Path) -> None:
    with new_namespace() as netns, table_in(netns, chosen=SETTINGS) as table:
        bring(table, case / "before.yaml")
        assert held(table) == sorted((case / "before.elements").read_text().splitlines())
        for damage in (
            (case / "damage").read_text().splitlines() if (case / "damage").exists() else ()
        ):
            hurt(netns, table, damage)
        bring(table, case / "after.yaml")
        assert held(table) == sorted((case / "after.elements").read_text().splitlines())


def hurt(netns: str, table: Table, damage: str) -> None:
    """Do to the table what a line of a file says, as another program would."""
    sign, where, element = damage.split(maxsplit=2)
    verb = "delete" if sign == "-" else "add"
    with enter(netns):
        subprocess.run(
            ["nft", verb, "element", "inet", "nftproxy", where, f"{{ {element} }}"], check=True
        )
    table.distrust(program=False)
