"""Another program's table may hold what an older libnftables does not survive.

It ends no process of ours, and Services are served on.

Where the library survives it (1.1.4 and later), nothing of this happens; then the tests put a
library that does not in its place.
"""

import asyncio
import contextlib
import itertools
import subprocess
from pathlib import Path

import msgspec
import pytest

from nftproxy.address import Family
from nftproxy.aftermath import Aftermath
from nftproxy.errors import BlockedError
from nftproxy.kernel import neighbours
from nftproxy.kernel.neighbours import is_safe, survives, suspicious
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab import namespace
from nftproxy.lab.namespace import enter
from nftproxy.model import Object
from nftproxy.monitoring.metrics import Metrics
from nftproxy.monitoring.proxyhealth import ProxyHealth
from nftproxy.node.conntrack import Conntrack
from nftproxy.table.program import Program
from tests.support import process
from tests.support.neighbour import (
    CONSTANT,
    PAYLOAD,
    flush_chain,
    move_in,
    move_out,
    user_data,
    writing,
)
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.process import Run, endpoints, network, nftproxy, write
from tests.support.running import eventually, running
from tests.support.tables import contents, new_namespace, table_in
from tests.support.world import World, settings

FLAGS = ("--node-name", "node1", "--cluster-cidr", "10.244.0.0/16")


@pytest.fixture(autouse=True)
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library at hand lives, as a child shows, this process believes that it does not."""
    with new_namespace() as netns:
        move_in(netns)
        with enter(netns), Kernel() as kernel:
            if kernel.blocked is None:
                monkeypatch.setattr(neighbours, "survives", lambda _: False)


@pytest.mark.parametrize(
    ("data", "safe"),
    [
        pytest.param(b"", True, id="nothing"),
        pytest.param(user_data(CONSTANT), False, id="type ipv4_addr"),
        pytest.param(user_data(PAYLOAD), True, id="typeof ip saddr"),
        pytest.param(
            user_data(PAYLOAD) + user_data(CONSTANT, 4), False, id="typeof ip saddr : type"
        ),
        pytest.param(
            user_data(13) + user_data(1, 4), True, id="typeof ip saddr . tcp dport : verdict"
        ),
        pytest.param(bytes((0, 4, 2, 0, 0, 0)), True, id="byte order alone"),
        pytest.param(bytes((7, 2)) + b"x\0", True, id="comment"),
        pytest.param(bytes((3, 0)), False, id="declared by nothing"),
        pytest.param(user_data(CONSTANT)[:5], False, id="cut off"),
        pytest.param(b"\3", True, id="half a piece"),
    ],
)
def test_what_is_safe(data: bytes, *, safe: bool) -> None:
    assert is_safe(data) is safe


def test_what_is_suspicious_is_named(netns: str) -> None:
    subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            netns,
            "nft",
            "add table inet fine; add set inet fine s { typeof ip saddr; }",
        ],
        check=True,
    )
    move_in(netns)
    move_in(netns, "more", "t", user_data(PAYLOAD) + user_data(CONSTANT, 4))
    with writing(netns) as channel:
        assert sorted(suspicious(channel)) == ["ip more t", "ip other s"]


@pytest.mark.parametrize("suspect", [False, True])
def test_the_child_meets_what_nft_meets(netns: str, *, suspect: bool) -> None:
    """It has the library that nft on this machine has, and is asked in the namespace of the table,
    not in that of the asker.
    """
    if suspect:
        move_in(netns)
    nft = subprocess.run(
        ["ip", "netns", "exec", netns, "nft", "list", "sets"], check=False, capture_output=True
    )
    assert suspect or nft.returncode == 0
    with enter(netns), Path("/proc/thread-self/ns/net").open() as place:
        assert survives(place.fileno()) is (nft.returncode == 0)
    with Path(f"/run/netns/{netns}").open() as place:
        assert survives(place.fileno()) is (nft.returncode == 0)


def test_a_library_that_lives_is_asked_once(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(neighbours, "survives", lambda number: asked.append(number) or True)  # type: ignore[func-returns-value]
    with enter(netns), Kernel() as kernel:
        assert kernel.blocked is None
        assert asked == []  # nothing suspicious, nobody asked
        move_in(netns)
        assert kernel.blocked is None
        move_in(netns, "more")
        assert kernel.blocked is None
        assert len(asked) == 1


def test_it_is_noticed_and_forgotten(netns: str) -> None:
    with enter(netns), Kernel() as kernel:
        assert kernel.blocked is None
        kernel.load(Program(settings()))
        assert kernel.blocked is None
        move_in(netns)
        assert "table ip other (set s)" in str(kernel.blocked)
        with pytest.raises(BlockedError):
            kernel.tidy(["find-service4"], [])
        move_out(netns)
        assert kernel.blocked is None
        kernel.probe()


def test_our_own_transactions_cost_no_look_at_all_sets(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with table_in(netns, service(), endpoint_slice(endpoints=[endpoint("10.244.1.2")])) as table:
        table.sync(Family.IPv4, [])
        table.sync(Family.IPv4, [])
        monkeypatch.setattr(
            neighbours, "suspicious", lambda _: pytest.fail("all sets were looked at")
        )
        for number in range(3, 8):
            table.store.put(endpoint_slice(endpoints=[endpoint(f"10.244.1.{number}")]))
            assert table.sync(Family.IPv4, []).written


def test_elements_are_written_on(netns: str) -> None:
    """A sync while the library must not be called leaves what it leaves else.

    What needs a set waits, alone, until it may be called.
    """
    first: list[Object] = [
        service(),
        endpoint_slice(endpoints=[endpoint("10.244.1.2"), endpoint("10.244.1.3")]),
    ]
    changed = endpoint_slice(endpoints=[endpoint("10.244.1.2"), endpoint("10.244.1.4")])
    more: list[Object] = [
        service("sticky", "10.96.0.11", sessionAffinity="ClientIP"),
        endpoint_slice("sticky", [endpoint("10.244.1.9")]),
        service("other", "10.96.0.12"),
        endpoint_slice("other", [endpoint("10.244.1.7"), endpoint("10.244.1.8")]),
    ]
    with running(netns, settings(families=[Family.IPv4])) as proxy:
        proxy.apply(*first)
        eventually(lambda: elements(netns, "services4") == 1 and proxy.settled())
        move_in(netns)
        proxy.apply(changed)
        eventually(lambda: "10.244.1.4" in addresses(netns))
        assert "10.244.1.3" not in addresses(netns)
        proxy.apply(*more)
        eventually(
            lambda: "10.244.1.8" in addresses(netns) and bool(proxy.logged("needs a chain or set"))
        )
        assert "10.244.1.9" not in addresses(netns)
        assert len(proxy.logged("was written by a newer nft")) == 1
        move_out(netns)
        eventually(lambda: "10.244.1.9" in addresses(netns))
        assert len(proxy.logged("no other program's table keeps us")) == 1
        assert not proxy.logged("somebody changed")  # what the writer wrote is ours
    fresh = [*first, changed, *more]
    with new_namespace() as other, table_in(other, *fresh) as wanted, table_in(netns) as found:
        wanted.sync(Family.IPv4, [])
        assert contents(found) == contents(wanted)


def elements(netns: str, where: str) -> int:
    with process.reading(netns) as reader:
        return reader.count(where) if reader.table_exists() and where in reader.sets() else 0


def addresses(netns: str) -> set[str]:
    with process.reading(netns) as reader:
        return {
            str(value[0])
            for value in reader.elements("endpoints4-tcp").values()
            if isinstance(value, tuple)
        }


def test_a_restart_serves_what_is_there(netns: str) -> None:
    """With the right program in the kernel, a process that may not call the library takes over and
    goes on.
    """
    objects: list[Object] = [
        service(),
        endpoint_slice(endpoints=[endpoint("10.244.1.2"), endpoint("10.244.1.3")]),
    ]
    with table_in(netns, *objects) as table:
        table.sync(Family.IPv4, [])
    move_in(netns)
    with table_in(netns, *objects) as table:
        table.kernel.require()
        assert table.sync(Family.IPv4, []).written == 0
        table.store.put(endpoint_slice(endpoints=[endpoint("10.244.1.2"), endpoint("10.244.1.5")]))
        assert table.sync(Family.IPv4, []).refused == {}
        assert addresses(netns) == {"10.244.1.2", "10.244.1.5"}


def test_without_a_program_it_is_one_clear_error(netns: str) -> None:
    move_in(netns)
    with table_in(netns, service()) as table:
        with pytest.raises(BlockedError, match=r"table ip other \(set s\)") as caught:
            table.sync(Family.IPv4, [])
        assert "1.1.4" in caught.value.hint
        move_out(netns)
        table.sync(Family.IPv4, [])


def test_rules_that_somebody_changed_wait_but_elements_do_not(netns: str) -> None:
    with running(netns, settings(families=[Family.IPv4])) as proxy:
        proxy.apply(
            service(), endpoint_slice(endpoints=[endpoint("10.244.1.2"), endpoint("10.244.1.3")])
        )
        eventually(lambda: elements(netns, "services4") == 1 and proxy.settled())
        move_in(netns)
        flush_chain(netns, "filter-forward")
        eventually(
            lambda: bool(proxy.logged("cannot be loaded again, elements are written all the same"))
        )
        proxy.apply(endpoint_slice(endpoints=[endpoint("10.244.1.2"), endpoint("10.244.1.4")]))
        eventually(lambda: "10.244.1.4" in addresses(netns))


def test_traffic_flows_on() -> None:
    """From before the neighbour to after it, to the endpoints of the moment."""
    with World(lab={"pods": 2}) as world:
        world.apply(service(), world.endpoints("pod1-1", "pod2-1"))
        for node in world.lab.nodes:
            move_in(node.namespace)
        assert {world.ask("pod1-1", "10.96.0.10", 80).name for _ in range(20)} == {
            "pod1-1",
            "pod2-1",
        }
        world.apply(world.endpoints("pod1-2", "pod2-2"))
        assert {world.ask("pod1-1", "10.96.0.10", 80).name for _ in range(20)} == {
            "pod1-2",
            "pod2-2",
        }


def test_the_health_server_says_so(netns: str) -> None:
    health, chosen = ProxyHealth(30), settings(families=[Family.IPv4])
    health.started(Family.IPv4)

    async def look(kernel: Kernel, conntrack: Conntrack) -> tuple[int, str]:
        metrics = Metrics([Family.IPv4], {})
        after = Aftermath(
            chosen,
            [],
            kernel,
            conntrack,
            health=health,
            metrics=metrics,
            record=lambda *_: None,
            judged=True,
        )
        with contextlib.closing(after):
            after.noticed(kernel.blocked)
        answer = health.livez()
        return answer.code, msgspec.json.decode(answer.body).get("limited", "")

    with enter(netns), Kernel() as kernel, contextlib.closing(Conntrack()) as conntrack:
        assert asyncio.run(look(kernel, conntrack)) == (200, "")
        move_in(netns)
        code, said = asyncio.run(look(kernel, conntrack))
        assert code == 200
        assert "table ip other (set s)" in said
        assert "1.1.4" in said
        move_out(netns)
        assert asyncio.run(look(kernel, conntrack)) == (200, "")


def test_others_may_change_their_tables_all_the_time(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then what was last seen counts.

    A sync must not fail because nobody can look at all sets at once.
    """
    with table_in(netns, service(), endpoint_slice(endpoints=[endpoint("10.244.1.2")])) as table:
        table.sync(Family.IPv4, [])
        numbers = itertools.count(1000)
        monkeypatch.setattr(table.kernel._channel, "generation", lambda: next(numbers))
        assert table.kernel.blocked is None
        table.store.put(endpoint_slice(endpoints=[endpoint("10.244.1.3")]))
        assert table.sync(Family.IPv4, []).written


@pytest.mark.parametrize("before", [True, False], ids=["before", "while it runs"])
def test_the_processes(tmp_path: Path, *, before: bool) -> None:
    """`run`, `diff`, `show` and `cleanup` live, and say what they have to."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    write(folder / "web.yaml", process.service(), endpoints("10.244.1.2", "10.244.1.3"))
    with network() as where, Run(where, folder, "--cluster-cidr", "10.244.0.0/16") as run:
        if before:
            run.until_started()
            move_in(where)
            run.end(9)
            run.start()
        run.until_started()
        if not before:
            move_in(where)
        write(folder / "web.yaml", process.service(), endpoints("10.244.1.2", "10.244.1.4"))
        run.until(lambda: "10.244.1.4" in addresses(where))
        found = nftproxy("diff", "--manifests", folder, *FLAGS, where=where)
        assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
        shown = nftproxy("show", where=where)
        assert shown.returncode == 0
        assert run.process.poll() is None
        run.end(15)
        cleaned = nftproxy("cleanup", where=where)
        assert (cleaned.returncode, cleaned.stderr) == (0, "")
        assert cleaned.stdout.startswith("removed table inet nftproxy")
        with namespace.enter(where):
            assert nftproxy("kube-proxy", "--cleanup").returncode == 0
