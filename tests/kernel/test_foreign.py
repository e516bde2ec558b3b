"""Somebody else changes our table: that is noticed and repaired.

What somebody changes in a table of his own is none of our business.
"""

import contextlib
import re
import subprocess
from collections.abc import Iterator

import pytest

from nftproxy.address import Family
from nftproxy.kernel.listener import InterferenceKind, Listener
from nftproxy.kernel.reader import Reader
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab import namespace
from nftproxy.lab.client import Answer
from nftproxy.lab.namespace import enter
from nftproxy.routes import Key, Value
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.running import Running, eventually, running
from tests.support.tables import new_namespace
from tests.support.world import World, settings, unique_name

Picture = tuple[int, frozenset[str], dict[str, dict[Key, Value]]]


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    with new_namespace() as name:
        yield name


@pytest.fixture(scope="module")
def proxy(netns: str) -> Iterator[Running]:
    with running(netns, settings()) as found:
        found.apply(
            service("web", "10.96.0.10", node_port=30080),
            endpoint_slice("web", [endpoint(f"10.244.1.{n}") for n in (2, 3, 4)]),
            service("sticky", "10.96.0.11", sessionAffinity="ClientIP"),
            endpoint_slice("sticky", [endpoint("10.244.1.5")]),
        )
        eventually(
            lambda: (
                "endpoints4-tcp" in picture(netns)[2] and len(picture(netns)[2]["services4"]) == 2
            )
        )
        eventually(found.settled)
        yield found


def picture(netns: str) -> Picture:
    """Everything that is in our table: number of rules, chains, elements."""
    with enter(netns):
        reader = Reader()
    with contextlib.closing(reader):
        if not reader.table_exists():
            return 0, frozenset(), {}
        names = sorted(reader.sets())
        return (
            reader.rules(),
            frozenset(reader.chains()),
            {name: reader.elements(name) for name in names if "cidrs" not in name},
        )


def nft(netns: str, command: str) -> None:
    with enter(netns):
        subprocess.run(["nft", command], check=True, capture_output=True)


@pytest.mark.contract("5.10.3", "9.9")
@pytest.mark.parametrize(
    "command",
    [
        "delete table inet nftproxy",
        "flush ruleset",
        "flush table inet nftproxy",
        "delete chain inet nftproxy filter-input",
        "insert rule inet nftproxy find-service4 counter",
        "flush chain inet nftproxy pick4-tcp-3",
        "delete element inet nftproxy services4 { 10.96.0.10 . tcp . 80 }",
        "delete element inet nftproxy endpoints4-tcp { 10.96.0.10 . 80 . 1 }",
        "add element inet nftproxy services4 { 10.96.9.9 . tcp . 80 : goto pick4-tcp-3 }",
        "flush map inet nftproxy endpoints4-tcp",
        (
            "delete element inet nftproxy cluster_members4-default/sticky/tcp/http { 10.244.1.5 . "
            "8080 }"
        ),
        "flush chain inet nftproxy learn4-10800-8080-default/sticky/tcp/http",
    ],
)
def test_repair(proxy: Running, netns: str, command: str) -> None:
    before = picture(netns)
    proxy.log.clear()
    repairs = proxy.proxy.repairs
    nft(netns, command)
    eventually(
        lambda: proxy.proxy.repairs > repairs and proxy.settled() and picture(netns) == before
    )
    assert len(proxy.logged("somebody changed table inet nftproxy (nft, process")) == 1


@pytest.mark.contract("9.9")
@pytest.mark.parametrize(
    ("command", "elements"),
    [
        ("delete element inet nftproxy services4 { 10.96.0.7 . tcp . 80 }", 1),
        ("delete element inet nftproxy endpoints4-tcp { 10.96.0.7 . 80 . 1 }", 1),
        ("delete chain inet nftproxy filter-input", 0),
        ("flush map inet nftproxy services4", 200),
    ],
)
def test_a_repair_writes_what_is_missing_and_no_more(command: str, elements: int) -> None:
    """However many services there are.

    It takes a second at 10 000 of them, and that is for reading them.
    """
    name = f"{unique_name()}.many"
    namespace.create(name)
    try:
        with running(name, settings(families=[Family.IPv4])) as proxy:
            for number in range(200):
                web = f"web{number}"
                proxy.apply(
                    service(web, f"10.96.0.{number + 1}"),
                    endpoint_slice(web, [endpoint(f"10.244.1.{n}") for n in (2, 3, 4)]),
                )
            eventually(
                lambda: proxy.settled() and len(picture(name)[2].get("services4", ())) == 200
            )
            proxy.log.clear()
            repairs = proxy.proxy.repairs
            nft(name, command)
            eventually(lambda: proxy.proxy.repairs > repairs and proxy.settled())
            assert (
                sum(
                    int(count)
                    for line in proxy.logged("in step")
                    for count in re.findall(r"(\d+) elements written", line)
                )
                == elements
            )
            assert len(picture(name)[2]["services4"]) == 200
    finally:
        namespace.delete(name)


def test_own_changes_are_not_foreign(proxy: Running, netns: str) -> None:
    repairs = proxy.proxy.repairs
    for count in (1, 2, 3, 2, 1, 3):
        proxy.apply(endpoint_slice("web", [endpoint(f"10.244.1.{n + 2}") for n in range(count)]))
        eventually(lambda count=count: len(picture(netns)[2]["nodeport_endpoints4-tcp"]) == count)  # type: ignore[misc]
    eventually(proxy.settled)
    assert proxy.proxy.repairs == repairs


def test_changes_of_other_tables_cost_no_read_back(proxy: Running, netns: str) -> None:
    repairs = proxy.proxy.repairs
    proxy.log.clear()
    for _ in range(20):
        nft(
            netns,
            "add table inet other; add chain inet other c { type filter hook input priority 0; "
            "}; delete table inet other",
        )
        nft(
            netns,
            "add table ip nftproxy; add chain ip nftproxy services4; delete table ip nftproxy",
        )
    # What came before it has been looked at when this is noticed
    nft(netns, "add chain inet nftproxy marker-of-the-test")
    eventually(lambda: proxy.proxy.repairs > repairs)
    eventually(proxy.settled)
    assert proxy.proxy.repairs == repairs + 1
    assert len(proxy.logged("somebody changed")) == 1


def test_listener_tells_elements_from_program() -> None:
    name = f"{unique_name()}.listener"
    namespace.create(name)
    try:
        with (
            enter(name),
            Kernel() as kernel,
            contextlib.closing(Listener(kernel.ports)) as listener,
        ):
            subprocess.run(
                [
                    "nft",
                    (
                        "add table inet nftproxy; add set inet nftproxy nodeport_ips4 { type "
                        "ipv4_addr; }"
                    ),
                ],
                check=True,
            )
            assert listener.look().kind is InterferenceKind.PROGRAM
            subprocess.run(
                ["nft", "add element inet nftproxy nodeport_ips4 { 192.0.2.9 }"], check=True
            )
            found = listener.look()
            assert found.kind is InterferenceKind.ELEMENTS
            assert found.who.startswith("nft, process")
            subprocess.run(
                [
                    "nft",
                    (
                        "add table inet other; add set inet other s { type inet_service; elements = "  # noqa: E501
                        "{ 1 } }"
                    ),
                ],
                check=True,
            )
            assert listener.look().kind is InterferenceKind.NOTHING
            kernel.probe()
            kernel.replace("nodeport_ips4", [("192.0.2.1",)])
            assert listener.look().kind is InterferenceKind.NOTHING
    finally:
        namespace.delete(name)


def test_traffic_flows_again() -> None:
    with World() as world:
        table = world.tables.pop("node1")
        table.kernel.close()
        with running(world.lab.place("node1").namespace, table.settings) as proxy:
            proxy.apply(service(), world.endpoints("pod1-1", "pod2-1"))
            eventually(
                lambda: isinstance(world.connect("pod1-2", "10.96.0.10", 80, timeout=0.2), Answer)
            )
            eventually(proxy.settled)
            nft(world.lab.place("node1").namespace, "delete table inet nftproxy")
            eventually(lambda: proxy.proxy.repairs == 1 and proxy.settled())
            assert isinstance(world.connect("pod1-2", "10.96.0.10", 80, timeout=2), Answer)
