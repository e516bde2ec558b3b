"""`top` and the reasons of refusals, with connections of our own to count."""

import contextlib
import json
import os
import pty
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from nftproxy.address import Family
from nftproxy.kernel.reader import Reader
from nftproxy.lab import namespace
from nftproxy.monitoring.activity import Activity
from nftproxy.monitoring.refusals import Refusals
from nftproxy.monitoring.tablefigures import TableFigures
from nftproxy.table.schema import Reason
from tests.commands.test_page import POD, VIP
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.process import NFTPROXY, network, nftproxy
from tests.support.tables import table_in
from tests.support.world import settings

EMPTY, RANGED, LOCAL = "10.96.0.11", "203.0.113.9", "10.96.0.12"


@pytest.fixture
def where() -> Iterator[str]:
    """A namespace with Services that answer, that refuse, and that only some may use."""
    with network() as name:
        subprocess.run(["ip", "-n", name, "addr", "add", f"{POD}/32", "dev", "lo"], check=True)
        subprocess.run(
            ["ip", "-n", name, "route", "add", "default", "dev", "lo", "src", POD], check=True
        )
        objects = (
            service(),
            endpoint_slice(endpoints=[endpoint(POD, "node1")]),
            service("empty", EMPTY),
            service(
                "ranged", "10.96.0.13", vips=[RANGED], loadBalancerSourceRanges=["192.0.2.0/24"]
            ),
            endpoint_slice("ranged", [endpoint(POD, "node1")]),
            service("local", LOCAL, internalTrafficPolicy="Local"),
            endpoint_slice("local", [endpoint("10.244.9.9", "node9")]),
        )
        chosen = settings(families=[Family.IPv4], detector=None)
        with table_in(name, *objects, chosen=chosen) as table:
            table.sync(Family.IPv4, [])
        yield name


def knock(address: str, port: int = 80, times: int = 1) -> None:
    """Send first packets; whatever comes back."""
    for _ in range(times):
        with socket.socket() as client:
            client.settimeout(0.02)
            with contextlib.suppress(OSError):
                client.connect((address, port))


def test_growth_and_reasons(where: str) -> None:
    with namespace.enter(where), contextlib.closing(Reader()) as reader:
        activity = Activity(reader)
        assert activity.read() == ({}, {})
        knock(VIP, times=5)
        knock(EMPTY, times=3)
        knock(LOCAL, times=2)
        knock(RANGED)
        knock(VIP, 81, times=4)
        busy, reasons = activity.read()
        assert {name: one.connections for name, one in busy.items() if one.connections} == {
            "default/web:http": 5
        }
        assert busy["default/empty:http"].refused == {Reason.NO_ENDPOINTS: 3}
        assert busy["default/local:http"].refused == {Reason.POLICY_LOCAL: 2}
        assert reasons == {
            Reason.NO_ENDPOINTS: 3,
            Reason.POLICY_LOCAL: 2,
            Reason.SOURCE_RANGE: 1,
            Reason.UNKNOWN_PORT: 4,
        }
        (share,) = activity.shares(busy["default/web:http"].frontends)
        assert (str(share.endpoint), share.connections) == (f"{POD}:8080", 5)
        assert activity.read() == ({}, {})


def test_the_metric_counts_by_reason(where: str) -> None:
    with namespace.enter(where), contextlib.closing(TableFigures([Family.IPv4])) as figures:
        knock(EMPTY, times=3)
        knock(LOCAL, times=2)
        knock(RANGED)
        knock(VIP, 81, times=4)
        (refused,) = [each for each in figures.collect() if each.name == "nftproxy_refused"]
    assert {each.labels["reason"]: each.value for each in refused.samples} == {
        "no-endpoints": 3,
        "policy-local": 2,
        "source-range": 1,
        "unknown-port": 4,
        "unallocated-address": 0,
    }
    assert {each.name for each in refused.samples} == {"nftproxy_refused_total"}


def test_an_idle_message_is_not_taken_apart(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nftproxy.monitoring import activity as module

    with namespace.enter(where), contextlib.closing(Reader()) as reader:
        activity = Activity(reader)
        activity.read()
        monkeypatch.setattr(module, "counted_in", lambda *_: pytest.fail("it did not change"))
        activity.read()


def test_a_counter_that_starts_again_counts_from_zero() -> None:
    refusals = Refusals({(Family.IPv4, Reason.UNKNOWN_PORT): 100})
    assert refusals.enter({(Family.IPv4, Reason.UNKNOWN_PORT): 3}).total() == 3
    assert refusals.enter({(Family.IPv4, Reason.UNKNOWN_PORT): 5}).total() == 2
    assert refusals.totals == {(Family.IPv4, Reason.UNKNOWN_PORT): 5}


@contextlib.contextmanager
def knocking(where: str) -> Iterator[None]:
    """Connections to the Service that answers and to the one without endpoints, all the time."""
    over = threading.Event()

    def run() -> None:
        with namespace.enter(where):
            while not over.wait(0.02):
                knock(VIP)
                knock(EMPTY)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("by", ["rate", "refused", "unanswered"])
def test_once_as_json(where: str, by: str) -> None:
    with knocking(where):
        done = nftproxy(
            "top", "--once", "--interval", "1", "--by", by, "--output", "json", where=where
        )
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)
    first, second = seen["services"]
    if by == "refused":
        first, second = second, first
    assert (first["service"], second["service"]) == ("default/web:http", "default/empty:http")
    assert first["connectionsPerSecond"] > 1
    assert first["endpoints"][0]["endpoint"] == f"{POD}:8080"
    assert first["endpoints"][0]["share"] == 1
    assert second["reasons"] == {"no-endpoints": second["refusedPerSecond"]}
    assert seen["conntrackLimit"] > 0


def test_once_as_text_and_when_nobody_asks(where: str) -> None:
    quiet = nftproxy("top", "--once", "--interval", "0.2", where=where)
    assert "no Service was asked in 0." in quiet.stdout
    with knocking(where):
        done = nftproxy("top", "--once", "--interval", "1", where=where)
    assert f"{POD}:8080 100%" in done.stdout
    assert "no-endpoints" in done.stdout


def test_who_waits_for_an_answer(where: str) -> None:
    shut = "chain shut { type filter hook input priority 0; tcp dport 8080 drop; }"
    rules = f"table inet foreign {{ {shut}; }}"
    subprocess.run(["ip", "netns", "exec", where, "nft", rules], check=True)
    with namespace.enter(where):
        knock(VIP, times=3)
    done = nftproxy("top", "--once", "--interval", "0.5", "--by", "unanswered", where=where)
    (row,) = [line for line in done.stdout.splitlines() if "default/web:http" in line]
    assert row.split()[:4] == ["default/web:http", "0", "0", "3"], (
        "now nobody is new, and three wait"
    )
    assert row.split()[4:] == [f"{POD}:8080", "(3)"]
    done = nftproxy("top", "--once", "--interval", "0.5", where=where)
    assert "UNANSWERED" not in done.stdout
    argv = ("top", "--once", "--interval", "0.5", "--by", "unanswered", "--output", "json")
    (service,) = json.loads(nftproxy(*argv, where=where).stdout)["services"]
    assert (service["unanswered"], service["endpoints"][0]["unanswered"]) == (3, 3)


def test_on_a_terminal_until_q(where: str) -> None:
    primary, secondary = pty.openpty()
    with namespace.enter(where):
        process = subprocess.Popen(
            [*NFTPROXY, "top", "--interval", "0.3"],
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        )
    os.close(secondary)
    seen = b""
    with knocking(where):
        end = time.monotonic() + 60
        while b"default/web:http" not in seen and time.monotonic() < end:
            seen += os.read(primary, 1 << 16)
        os.write(primary, b"q")
        with contextlib.suppress(OSError):  # the end of a terminal
            while data := os.read(primary, 1 << 16):
                seen += data
    assert process.wait(30) == 0
    assert b"default/web:http" in seen


def test_errors_get_a_line_and_a_hint() -> None:
    with network() as bare:
        done = nftproxy("top", "--once", where=bare)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no table inet nftproxy here")
    assert "hint: " in done.stderr
    done = nftproxy("top", "--output", "json")
    assert done.returncode == 2
    assert "--output json needs --once" in done.stderr
    done = nftproxy("top", "--interval", "0")
    assert done.returncode == 2
