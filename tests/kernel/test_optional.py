"""Parts of the program that are there only while a Service needs them.

Source ranges and remembering; what a connection passes elsewhere is always there.
"""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.kernel.reader import Reader
from nftproxy.lab.namespace import enter
from nftproxy.model import EndpointSlice, Object, Service
from nftproxy.sync.table import Table
from nftproxy.table import schema
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import deliver, generation, table_in, watched
from tests.support.world import settings

RANGES = set(schema.SOURCE_RANGES)
STICKY: dict[str, Any] = {"sessionAffinity": "ClientIP"}
RANGED: dict[str, Any] = {"loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8::/32"]}
ADDRESSES = {
    Family.IPv4: ("10.96.0.10", "203.0.113.1", "10.244.1.2"),
    Family.IPv6: ("fd00:10:96::10", "fd00:beef::1", "fd00:244:1::2"),
}


_DELETION = """
flush chain inet nftproxy translated
flush chain inet nftproxy filter-prerouting
flush chain inet nftproxy filter-output-early
delete chain inet nftproxy filter-prerouting
delete chain inet nftproxy filter-output-early
delete chain inet nftproxy firewall
delete chain inet nftproxy remember6
"""


@pytest.fixture
def table(netns: str) -> Iterator[Table]:
    with table_in(netns, chosen=settings()) as table:
        yield table


def web(name: str, *families: Family, **spec: Any) -> list[Object]:
    """A Service with a load-balancer address, and its slices."""
    found: list[Object] = [
        service(
            name,
            [ADDRESSES[family][0] for family in families],
            vips=[ADDRESSES[family][1] for family in families],
            **spec,
        )
    ]
    found += [
        endpoint_slice(name, [endpoint(ADDRESSES[family][2], "node1")], family=family)
        for family in families
    ]
    return found


def sync(table: Table, *items: Object) -> None:
    deliver(table, *items)
    for family in table.settings.families:
        assert table.sync(family, []).refused == {}


def optional(reader: Reader) -> set[str]:
    return set(reader.chains()) & schema.optional(Family)


def leading(netns: str) -> list[str]:
    """The chains to which connections with an endpoint are sent."""
    listed = subprocess.run(
        ["ip", "netns", "exec", netns, "nft", "list", "chain", "inet", "nftproxy", "translated"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [line.split()[-1] for line in listed.splitlines() if "goto" in line]


def test_plain_services_need_none(table: Table, netns: str, reader: Reader) -> None:
    sync(table, *web("web", *Family, externalTrafficPolicy="Local"))
    assert optional(reader) == set()
    assert leading(netns) == []


@pytest.mark.contract("2.7.4")
def test_source_ranges_come_with_the_first_service_and_go_after_the_last(
    table: Table, reader: Reader
) -> None:
    sync(table, *web("web", Family.IPv6, **RANGED))
    assert optional(reader) == RANGES
    table.tidy()
    assert optional(reader) == RANGES, "still in use"
    sync(table, *web("web", Family.IPv6))
    assert optional(reader) == RANGES, "not in the way of a sync"
    assert table.untidy
    table.tidy()
    assert optional(reader) == set()
    before = generation(reader)
    table.tidy()
    assert generation(reader) == before
    sync(table, *web("web", Family.IPv6, **RANGED))
    assert optional(reader) == RANGES, "made again"


@pytest.mark.contract("2.4.1")
def test_a_family_remembers_where_it_has_to(table: Table, netns: str, reader: Reader) -> None:
    sync(table, *web("web", Family.IPv4, **STICKY))
    assert optional(reader) == {"remember4"}
    assert leading(netns) == ["remember4"]
    sync(table, *web("web", *Family, **STICKY))
    assert optional(reader) == {"remember4", "remember6"}
    assert leading(netns) == ["remember4", "remember6"]
    sync(table, *web("web", *Family, **STICKY, **RANGED))
    assert optional(reader) == {"remember4", "remember6", *RANGES}
    sync(table, *web("web", *Family, **RANGED))
    sync(table, *web("other", Family.IPv6, **STICKY))
    table.tidy()
    assert optional(reader) == {"remember6", *RANGES}
    assert leading(netns) == ["remember6"]


def test_a_part_is_there_before_the_elements_that_it_reads(table: Table, reader: Reader) -> None:
    """Otherwise a packet would find an address without its source ranges."""
    seen: list[tuple[str, set[str]]] = []

    def look(text: str) -> None:
        written = text.replace(" ", "")
        seen.extend(
            (where, optional(reader))
            for where in ("firewall4", "members4")
            if f'"name":"{where}"' in written
        )

    with watched(table.kernel, look):
        sync(table, *web("web", Family.IPv4, **STICKY, **RANGED))
    assert {where for where, _ in seen} == {"firewall4", "members4"}
    for where, there in seen:
        assert set(schema.needed_by(where)) <= there


@pytest.mark.contract("5.7.7")
def test_a_restart_with_nothing_changed_writes_nothing(netns: str, reader: Reader) -> None:
    items = web("web", *Family, **STICKY, **RANGED)
    with table_in(netns, *items, chosen=settings()) as table:
        sync(table)
    before = generation(reader)
    with table_in(netns, *items, chosen=settings()) as table:
        sync(table)
        table.tidy()
    assert generation(reader) == before
    assert optional(reader) == schema.optional(Family)


def test_what_vanished_while_nobody_looked_goes_in_quiet_times(netns: str, reader: Reader) -> None:
    with table_in(netns, *web("web", *Family, **STICKY, **RANGED), chosen=settings()) as table:
        sync(table)
    with table_in(netns, *web("web", *Family), chosen=settings()) as table:
        sync(table)
        assert table.untidy
        table.tidy()
    assert optional(reader) == set()


def test_a_reload_keeps_them(table: Table, netns: str, reader: Reader) -> None:
    sync(table, *web("web", *Family, **STICKY, **RANGED))
    rules = reader.rules()
    table.distrust(program=True)
    sync(table)
    assert optional(reader) == schema.optional(Family)
    assert reader.rules() == rules
    assert leading(netns) == ["remember4", "remember6"]


@pytest.mark.parametrize("restart", [False, True], ids=["repair", "restart"])
def test_one_that_somebody_deleted_is_made_again(
    netns: str, reader: Reader, *, restart: bool
) -> None:
    items = web("web", *Family, **STICKY, **RANGED)
    with table_in(netns, *items, chosen=settings()) as table:
        sync(table)
        rules = reader.rules()
        with enter(netns):
            subprocess.run(["nft", _DELETION], check=True)
        if not restart:
            table.distrust(program=True)
            sync(table)
    if restart:
        with table_in(netns, *items, chosen=settings()) as table:
            sync(table)
    assert optional(reader) == schema.optional(Family)
    assert reader.rules() == rules


def test_a_service_that_goes_takes_its_part_with_it(table: Table, reader: Reader) -> None:
    items = web("web", Family.IPv4, **STICKY, **RANGED)
    sync(table, *items)
    for item in items:
        assert isinstance(item, Service | EndpointSlice)
        table.store.remove(type(item), item.metadata.key)
    sync(table)
    table.tidy()
    assert optional(reader) == set()
