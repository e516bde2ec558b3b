"""Reading our table: what the kernel holds, whatever other programs have beside it or put into it
(contract 5.1.3, 5.7.4).
"""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nftproxy.address import Family, parse_network
from nftproxy.errors import KernelError, MissingError
from nftproxy.kernel.reader import Reader
from nftproxy.model import Object
from nftproxy.routes import Verdict
from nftproxy.sync.table import Table
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import bare_table, table_in
from tests.support.world import settings


@pytest.fixture
def table(netns: str) -> Iterator[Table]:
    with table_in(netns, chosen=settings()) as table:
        for family in Family:
            table.sync(family, [])
        yield table


def run(table: Table, *commands: str) -> None:
    table.kernel.library.run("\n".join(commands) + "\n")


def test_no_table(reader: Reader) -> None:
    assert not reader.table_exists()
    assert reader.chains() == {}
    assert reader.rules() == 0
    with pytest.raises(MissingError):
        reader.sets()
    with pytest.raises(MissingError):
        reader.elements("services4")
    with pytest.raises(MissingError):
        reader.networks("service_cidrs4", Family.IPv4)


def test_names(table: Table, reader: Reader) -> None:
    assert reader.table_exists()
    chains = reader.chains()
    assert {name for name, base in chains.items() if base} == set(table.program.chains()[0])
    assert table.program.names() == set(chains) | reader.sets()
    assert reader.rules() > 30


@pytest.mark.contract("5.1.3")
def test_only_our_table_is_read(table: Table, reader: Reader) -> None:
    """Others may have chains and sets of the same names, in tables of the same name."""
    before = reader.chains(), reader.sets(), reader.rules()
    for family in ("ip", "ip6", "bridge", "arp"):
        run(
            table,
            f"add table {family} nftproxy",
            f"add chain {family} nftproxy services4",
            f"add chain {family} nftproxy mine",
        )
    run(
        table,
        "add table inet nftproxy2",
        "add set inet nftproxy2 services4 { type ipv4_addr; elements = { 192.0.2.1 }; }",
        "add chain inet nftproxy2 mine",
        "add rule inet nftproxy2 mine counter",
    )
    assert (reader.chains(), reader.sets(), reader.rules()) == before
    assert reader.elements("services4") == {}
    assert reader.table_exists("nftproxy2")
    assert reader.table_exists("nftproxy", "ip6")
    assert not reader.table_exists("nftproxy2", "ip")


VALUES: list[tuple[str, str, Any, Any]] = [
    ("cluster_ips4", "10.96.0.10", ("10.96.0.10",), None),
    ("cluster_ips6", "fd00::10", ("fd00::10",), None),
    ("cluster_ips6", "::c000:201", ("::c000:201",), None),
    (
        "hairpin4",
        "10.0.0.1 . 10.0.0.1 . sctp . 65535",
        ("10.0.0.1", "10.0.0.1", "sctp", 65535),
        None,
    ),
    ("hairpin6", "fd00::1 . fd00::1 . udp . 1", ("fd00::1", "fd00::1", "udp", 1), None),
    (
        "services4",
        "10.96.0.10 . tcp . 80 : goto reject-new",
        ("10.96.0.10", "tcp", 80),
        Verdict("goto", "reject-new"),
    ),
    (
        "services6",
        "fd00::1 . udp . 53 : jump reject-new",
        ("fd00::1", "udp", 53),
        Verdict("jump", "reject-new"),
    ),
    (
        "no_endpoints4",
        '10.96.0.10 . tcp . 80 comment "a/b:c" : drop',
        ("10.96.0.10", "tcp", 80),
        Verdict("drop", "", "a/b:c"),
    ),
    (
        "no_endpoints4",
        "10.96.0.10 . 47 . 80 : accept",
        ("10.96.0.10", "47", 80),
        Verdict("accept"),
    ),  # by somebody's hand
    ("no_endpoints4", "10.96.0.10 . tcp . 80 : return", ("10.96.0.10", "tcp", 80), Verdict("-5")),
    (
        "nodeport_services4",
        "tcp . 30080 : goto reject-new",
        ("tcp", 30080),
        Verdict("goto", "reject-new"),
    ),
    (
        "endpoints4-tcp",
        "10.96.0.10 . 80 . 0 : 10.244.1.2 . 8080",
        ("10.96.0.10", 80, 0),
        ("10.244.1.2", 8080),
    ),
    (
        "endpoints6-sctp",
        "fd00::1 . 80 . 65535 : fd00::2 . 65535",
        ("fd00::1", 80, 65535),
        ("fd00::2", 65535),
    ),
    (
        "nodeport_endpoints4-udp",
        "30080 . 257 : 10.244.1.2 . 8080",
        (30080, 257),
        ("10.244.1.2", 8080),
    ),
    (
        "local_endpoints4-tcp",
        "10.96.0.10 . 80 . 0 : 10.244.1.2 . 8080",
        ("10.96.0.10", 80, 0),
        ("10.244.1.2", 8080),
    ),
]


@pytest.mark.contract("5.7.4a")
@pytest.mark.parametrize(
    ("where", "text", "key", "value"),
    VALUES,
    ids=[f"{where}: {text}" for where, text, _, _ in VALUES],
)
def test_elements(
    table: Table, reader: Reader, where: str, text: str, key: Any, value: Any
) -> None:
    """Whatever a tool would print: protocols by number, mapped addresses with dots."""
    run(table, f"add element inet nftproxy {where} {{ {text} }}")
    assert reader.elements(where) == {key: value}
    assert reader.count(where) == 1


INTERVALS = [
    [],
    ["10.96.0.0/16"],
    ["10.96.0.0/16", "10.97.0.0/16"],
    ["10.95.0.0/16", "10.96.0.0/16"],
    ["10.96.0.0/16", "10.97.0.0/17"],
    ["0.0.0.0/0"],
    ["0.0.0.0/1"],
    ["128.0.0.0/1"],
    ["0.0.0.0/32", "255.255.255.255/32"],
    ["10.0.0.1/32"],
    ["10.0.0.0/31", "10.0.0.2/32", "10.0.0.4/30"],
]


@pytest.mark.contract("1.5.1", "2.5.7")
@pytest.mark.parametrize("texts", INTERVALS, ids=" ".join)
def test_networks(table: Table, reader: Reader, texts: list[str]) -> None:
    """Those that meet, those at either end of all addresses."""
    for text in texts:
        run(table, f"add element inet nftproxy service_cidrs4 {{ {text} }}")
    found = reader.networks("service_cidrs4", Family.IPv4)
    expected = ["10.96.0.0/15"] if texts == INTERVALS[2] else texts
    assert found == [parse_network(text) for text in expected]


@pytest.mark.parametrize(
    "texts",
    [["::/0"], ["fd00::/112", "fd00::1:0/112"], ["ffff::/16"], ["fd00::1/128"]],
    ids=" ".join,
)
def test_ipv6_networks(table: Table, reader: Reader, texts: list[str]) -> None:
    for text in texts:
        run(table, f"add element inet nftproxy service_cidrs6 {{ {text} }}")
    found = reader.networks("service_cidrs6", Family.IPv6)
    expected = ["fd00::/111"] if len(texts) == 2 else texts
    assert found == [parse_network(text) for text in expected]


def test_a_range_that_is_no_network(table: Table, reader: Reader) -> None:
    """By somebody's hand."""
    run(table, "add element inet nftproxy service_cidrs4 { 10.0.0.5-10.0.0.8 }")
    assert [str(n) for n in reader.networks("service_cidrs4", Family.IPv4)] == [
        "10.0.0.5/32",
        "10.0.0.6/31",
        "10.0.0.8/32",
    ]


def test_sets_that_are_not_ours(table: Table, reader: Reader) -> None:
    """Somebody's set in our table, or one of a later release.

    Known to be there, but nothing is read from it.
    """
    run(
        table,
        "add set inet nftproxy strange { type ether_addr; elements = { 00:11:22:33:44:55 }; }",
        "add map inet nftproxy later4 { type ipv4_addr : verdict; elements = { 192.0.2.1 : drop "
        "}; }",
    )
    assert {"strange", "later4"} <= reader.sets()
    assert reader.elements("strange") == reader.elements("later4") == {}


def test_counters_are_those_of_the_elements(table: Table, reader: Reader) -> None:
    run(
        table,
        "add element inet nftproxy services4 { 10.96.0.10 . tcp . 80 counter packets 7 bytes "
        "420 : goto reject-new }",
        "add element inet nftproxy cluster_ips4 { 10.96.0.10 }",
    )
    assert [counted.packets for counted in reader.counted("services4")] == [7]
    assert [counted.packets for counted in reader.counted("cluster_ips4")] == [0]


def test_remembered_clients(table: Table, reader: Reader) -> None:
    """Elements with a timeout."""
    name = "affinity4-default/web/tcp/http-8080"
    run(
        table,
        f"add map inet nftproxy {name} "
        f"{{ type ipv4_addr : ipv4_addr; size 65536; flags dynamic,timeout; }}",
        f"add element inet nftproxy {name} {{ 192.0.2.1 timeout 1h : 10.244.1.2 }}",
    )
    assert reader.elements(name) == {("192.0.2.1",): "10.244.1.2"}


def test_a_large_map(reader: Reader, netns: str) -> None:
    """More than one netlink message, and more than the receive buffer."""
    members = [endpoint(f"10.{number // 250 % 250}.{number % 250}.2") for number in range(6_000)]
    with table_in(netns, service(), endpoint_slice(endpoints=members)) as table:
        assert table.sync(Family.IPv4, []).refused == {}
        found = reader.elements("endpoints4-tcp")
    assert {key[2] for key in found} == set(range(6_000))
    assert len(set(found.values())) == 6_000


def test_a_picture_that_something_disturbs_is_taken_again(netns: str, reader: Reader) -> None:
    """While transactions are made without pause, what is read is one of the states that there were.

    Without waiting for the transaction that is being committed, about one reading in eighty misses
    elements or mixes two states.
    """
    objects: list[list[Object]] = [
        [
            service(),
            endpoint_slice(endpoints=[endpoint(f"10.244.{state}.{pod}") for pod in range(2, 202)]),
        ]
        for state in (1, 2)
    ]
    with table_in(netns, *objects[0]) as table:
        table.sync(Family.IPv4, [])
        stopping = threading.Event()
        complaints: list[str] = []

        def change() -> None:
            while not stopping.is_set():
                for state in objects:
                    table.store.put(state[1])
                    table.sync(Family.IPv4, [])

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(400):
                try:
                    values = set(reader.elements("endpoints4-tcp").values())
                except KernelError as error:  # told to the user when it goes on for ever
                    complaints.append(str(error))
                    continue
                assert (
                    len(
                        {
                            str(value[0]).rpartition(".")[0]
                            for value in values
                            if isinstance(value, tuple)
                        }
                    )
                    == 1
                )
                assert len(values) == 200
        finally:
            stopping.set()
            thread.join()
        assert len(complaints) < 400
        assert all("changes too fast" in text for text in complaints)


def test_after_a_failed_read_the_reader_still_works(table: Table, reader: Reader) -> None:
    for _ in range(3):
        with pytest.raises(MissingError):
            reader.elements("affinity4-nobody-1")
        assert reader.elements("services4") == {}
    assert table.kernel.refresh()


def test_a_bare_table_has_no_elements() -> None:
    with bare_table() as table:
        table.sync(Family.IPv4, [])
        assert not any(table.kernel.elements(name) for name in table.kernel.sets)
