"""The path of a sync: which files its calls enter, in order.

Whoever reads the code goes the same way.
"""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import nftproxy
from nftproxy.address import Family, parse_address
from nftproxy.model import Object
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.paths import ROOT
from tests.support.tables import bare_table, deliver

PACKAGE = Path(nftproxy.__file__).parent
VALUES = {
    "address.py",
    "chunks.py",
    "annotations.py",
    "model.py",
    "selection.py",
    "configuration/settings.py",
    "sync/report.py",
    "table/schema.py",
    "table/delta.py",
    "table/slots.py",
    "table/netlink.py",
}
"""Files that say what things are; every other one uses them.

A reader looks things up there, but does not go through.
"""
RETURNS = 7


def path(sync: Any) -> list[str]:
    """The files with functions that a sync calls for the first time, in order."""
    seen: set[Any] = set()
    found: list[str] = []

    def enter(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        file = Path(code.co_filename)
        if (
            event != "call"
            or code in seen
            or PACKAGE not in file.parents
            or code.co_name.startswith("<")
        ):
            return
        seen.add(code)
        name = str(file.relative_to(PACKAGE))
        if (
            name not in VALUES
            and not code.co_qualname.startswith("Frontend.")
            and found[-1:] != [name]
        ):
            found.append(name)

    sys.setprofile(enter)
    try:
        sync()
    finally:
        sys.setprofile(None)
    return found


def test_a_sync_seldom_returns_to_a_file_it_left() -> None:
    """And docs/architecture.md shows the way it goes."""
    # Its pick is there already
    other: list[Object] = [
        service("other", "10.96.0.11"),
        endpoint_slice("other", [endpoint("10.244.1.2")]),
    ]
    with bare_table(
        service(),
        endpoint_slice(endpoints=[endpoint("10.244.1.2"), endpoint("10.244.1.3")]),
        *other,
    ) as table:
        own = [parse_address("192.168.50.11")]
        table.sync(Family.IPv4, own)
        deliver(table, endpoint_slice(endpoints=[endpoint("10.244.1.2")]))
        way = path(lambda: table.sync(Family.IPv4, own))
    assert len(way) - len(set(way)) <= RETURNS, " > ".join(way)
    assert " > ".join(way) in " ".join((ROOT / "docs/architecture.md").read_text().split())
