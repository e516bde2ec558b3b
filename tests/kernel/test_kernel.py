"""The edge to libnftables.

What is required of a machine, hooks and priorities, and what a fresh table looks like.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from loguru import logger

from nftproxy import log
from nftproxy.address import Family
from nftproxy.daemon import SKIP_KERNEL_CHECK, require_kernel
from nftproxy.errors import MissingError, UnusableError
from nftproxy.kernel import transactions
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.namespace import enter
from nftproxy.model import Object
from nftproxy.store import Store
from nftproxy.sync.table import Table
from nftproxy.table.delta import Delta
from nftproxy.table.program import Program
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import table_in
from tests.support.world import settings


@pytest.mark.contract("5.1.1", "9.15")
@pytest.mark.parametrize(
    ("release", "environment", "accepted"),
    [
        ("6.18.1-generic", {}, True),
        ("5.13.0", {}, True),
        ("5.12.19", {}, False),
        ("4.19.0-25-amd64", {}, False),
        ("4.19.0", {SKIP_KERNEL_CHECK: "1"}, True),
        ("4.19.0", {SKIP_KERNEL_CHECK: ""}, False),
        ("something", {}, True),
    ],
)
def test_which_kernels_are_accepted(
    release: str, environment: dict[str, str], *, accepted: bool
) -> None:
    if accepted:
        require_kernel(release, environment)
        return
    with pytest.raises(UnusableError, match=r"older than 5\.13") as caught:
        require_kernel(release, environment)
    assert SKIP_KERNEL_CHECK in caught.value.hint


@pytest.mark.contract("5.1.2")
def test_the_probe_leaves_nothing(netns: str) -> None:
    with enter(netns), Kernel() as kernel:
        kernel.require()
        assert (
            subprocess.run(["nft", "list", "tables"], check=True, capture_output=True).stdout == b""
        )


@pytest.mark.contract("5.2.1", "5.2.2")
@pytest.mark.parametrize("ranges", [False, True], ids=["", "source ranges"])
def test_hooks_and_priorities(netns: str, *, ranges: bool) -> None:
    """Numbers, whatever names this version of nft gives them.

    Other components order themselves relative to these.
    """
    with enter(netns), Kernel() as kernel:
        program = Program(settings())
        kernel.load(program)
        if ranges:
            kernel.ensure_optional(program, ["firewall4"])
        listed = subprocess.run(
            ["nft", "-y", "list", "table", "inet", "nftproxy"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found: dict[str, tuple[str, str, str]] = {}
    name = ""
    for line in listed.splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            name = words[1]
        if words[:1] == ["type"] and "hook" in words:
            assert line.strip().endswith("policy accept;")
            found[name] = (words[1], words[3], words[5].rstrip(";"))
    early = {
        "filter-prerouting": ("filter", "prerouting", "-110"),
        "filter-output-early": ("filter", "output", "-110"),
    }
    decisive = {
        **(early if ranges else {}),
        "nat-prerouting": ("nat", "prerouting", "-100"),
        "nat-output": ("nat", "output", "-100"),
        "filter-input": ("filter", "input", "0"),
        "filter-forward": ("filter", "forward", "0"),
        "filter-output": ("filter", "output", "0"),
        "nat-postrouting": ("nat", "postrouting", "100"),
    }
    assert decisive == found


@pytest.mark.contract("5.7.3")
def test_a_base_chain_of_another_release_is_replaced(netns: str) -> None:
    with enter(netns), Kernel() as kernel:
        other = (
            "add table inet nftproxy; add chain inet nftproxy nat-prerouting { type nat "
            "hook prerouting priority -99; }"
        )
        gone = (
            "add chain inet nftproxy old-hook { type filter hook forward priority 5; policy drop; }"
        )
        subprocess.run(["nft", f"{other}; {gone}"], check=True)
        kernel.load(Program(settings()))
        listed = subprocess.run(
            ["nft", "-y", "list", "chains"], check=True, capture_output=True, text=True
        ).stdout
    assert "priority -99" not in listed
    assert "old-hook" not in listed


@pytest.mark.contract("1.1.9", "5.8.3")
def test_an_unchanged_object_writes_nothing(netns: str) -> None:
    chosen = settings(families=[Family.IPv4])
    with enter(netns), Kernel() as kernel:
        table = Table(chosen, Store(chosen.families), kernel)
        objects: list[Object] = [service(), endpoint_slice(endpoints=[endpoint("10.244.1.2")])]
        for item in objects:
            table.store.put(item)
        assert table.sync(Family.IPv4, []).written > 0
        assert not table.store.put(service())
        assert not table.store.put(endpoint_slice(endpoints=[endpoint("10.244.1.2")]))
        assert not table.store.pending(Family.IPv4)
        report = table.sync(Family.IPv4, [])
        assert (report.services, report.written, report.transactions) == (0, 0, 0)


@pytest.fixture
def debugging() -> Iterator[Callable[[int], None]]:
    """Log as with a verbosity, until the end of the test."""
    yield lambda verbosity: log.start(verbosity=verbosity)
    logger.remove()
    assert sys.__stderr__
    logger.add(sys.__stderr__)


@pytest.mark.contract("5.10.4")
@pytest.mark.parametrize("count", [1, 200], ids=["short", "long"])
@pytest.mark.parametrize("verbosity", [3, 4])
@pytest.mark.parametrize("crowded", [False, True], ids=["library", "netlink"])
def test_refused_commands_are_logged_for_debugging(
    netns: str,
    debugging: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    verbosity: int,
    crowded: bool,
) -> None:
    """As JSON, so that they can be tried with `nft -j -f -`, whichever way they went.

    But not megabytes of them.
    """
    if crowded:
        monkeypatch.setattr(transactions, "CROWDED", 0)
    refused = Delta()
    for number in range(count):
        refused.remove("endpoints4-tcp", ("10.96.0.10", 80, number))
    with table_in(netns) as table:
        table.sync(Family.IPv4, [])
        debugging(verbosity)
        with pytest.raises(MissingError):
            table.kernel.commit(refused)
    logged = capsys.readouterr().err
    if verbosity < 4:
        assert logged == ""
        return
    first, commands, *more = logged.splitlines()
    assert "DEBUG   refused: " in first
    assert first.endswith("No such file or directory; the commands were:")
    assert crowded == ("writing nftables" in first), "the writer's own words"
    if count == 1:
        assert more == []
        (command,) = json.loads(commands)["nftables"]
        assert command["delete"]["element"]["elem"] == [{"concat": ["10.96.0.10", 80, 0]}]
    else:
        assert len(commands) == 4000
        assert more[0].endswith(" characters more")
