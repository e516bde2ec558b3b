"""Chains copied from others are, expression by expression, those that libnftables makes of the
program's text.
"""

from collections.abc import Iterator

import pytest

from nftproxy.address import Family
from nftproxy.configuration.settings import BridgeInterface
from nftproxy.kernel import neighbours
from nftproxy.model import EndpointSlice, Object
from nftproxy.sync.table import Table
from nftproxy.table.copies import ShapeError, adapted, model
from tests.kernel.test_packing import everything
from tests.support.neighbour import move_in
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import deliver, new_namespace, table_in
from tests.support.world import CLUSTER, settings


@pytest.mark.parametrize(
    ("name", "others", "found"),
    [
        (
            "pick4-tcp-3",
            ["pick4-udp-2", "pick6-tcp-2", "local4-tcp-2", "pick4-tcp-2"],
            "pick4-tcp-2",
        ),
        ("pick4-tcp-3", ["nodeport-pick4-tcp-2", "sticky-pick4-tcp-2-80-a/b/tcp/"], None),
        ("maglev-pick4-tcp-2048", ["hash-pick4-tcp-2", "pick4-tcp-2"], None),
        (
            "hash-preserve4-tcp-3",
            ["hash-preserve4-tcp-2-1", "hash-preserve4-tcp-2"],
            "hash-preserve4-tcp-2",
        ),
        ("nodeport-external6-sctp-10", ["nodeport-external6-sctp-1"], "nodeport-external6-sctp-1"),
        ("preserve4-tcp-3", ["preserve4-tcp-2-1", "preserve4-tcp-2"], "preserve4-tcp-2"),
        ("preserve4-tcp-3-2", ["preserve4-tcp-2", "preserve4-tcp-4-4"], "preserve4-tcp-4-4"),
        (
            "sticky-pick4-tcp-3-80-a/b/tcp/",
            ["sticky-pick4-tcp-2-80-a/c/tcp/", "sticky-pick4-tcp-2-81-a/b/tcp/"],
            None,
        ),
        (
            "sticky-pick4-tcp-3-80-1/b/tcp/",
            ["sticky-pick4-tcp-2-80-1/b/tcp/"],
            "sticky-pick4-tcp-2-80-1/b/tcp/",
        ),
        (
            "sticky-preserve4-tcp-3-1-80.81-a/b/tcp/",
            ["sticky-preserve4-tcp-3-80.81-a/b/tcp/"],
            None,
        ),
        ("learn4-600-80-a/b/tcp/", ["learn4-300-80-a/b/tcp/"], None),
        ("program-0123", ["program-4567"], None),
    ],
)
def test_models(name: str, others: list[str], found: str | None) -> None:
    assert model(name, others) == found


@pytest.mark.parametrize("lines", ["return", "return\nreturn", "goto a", "ip daddr @a return"])
def test_another_shape_is_refused(lines: str) -> None:
    with pytest.raises(ShapeError):
        adapted([], f"chain x {{\n{lines}\n}}")


@pytest.fixture(
    params=[CLUSTER, BridgeInterface("cni0"), None], ids=["cidr", "bridge", "no detector"]
)
def tables(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Table, Table]]:
    """Two equal tables of every kind of service; the library must not be called for the second."""
    monkeypatch.setattr(neighbours, "survives", lambda _: False)
    chosen = settings(detector=request.param)
    with (
        new_namespace() as one,
        new_namespace() as two,
        table_in(one, chosen=chosen) as normal,
        table_in(two, chosen=chosen) as blocked,
    ):
        for table in (normal, blocked):
            for family in Family:
                deliver(table, *everything(family))
                table.sync(family, [])
        move_in(two)
        assert blocked.kernel.blocked
        yield normal, blocked


def rules(table: Table) -> dict[str, list[bytes]]:
    table.kernel.refresh()
    return {name: table.kernel._reader.expressions(name) for name in table.kernel.chains}


def test_other_numbers_of_endpoints(tables: tuple[Table, Table]) -> None:
    """Each service gets more endpoints, on this node and elsewhere, and chains for as many."""
    more: list[Object] = []
    for family in Family:
        for item in everything(family):
            if isinstance(item, EndpointSlice) and item.endpoints:
                pod = item.endpoints[0].addresses[0]
                members = [
                    endpoint(each.addresses[0], each.node_name or "") for each in item.endpoints
                ]
                here = any(each.node_name == "node1" for each in item.endpoints)
                members += [
                    endpoint(f"{pod}{n}", "node1" if here and n % 2 else "node2")
                    for n in range(5, 9)
                ]
                name = item.metadata.name.rpartition("-")[0]
                protocol = item.ports[0].protocol if item.ports else "TCP"
                more.append(endpoint_slice(name, members, protocol=str(protocol), family=family))
    before = rules(tables[1]).keys()
    for table in tables:
        deliver(table, *more)
        for family in Family:
            assert table.sync(family, []).refused == {}
    assert tables[1].kernel.blocked
    assert len(rules(tables[1]).keys() - before) > 20
    assert rules(tables[1]) == rules(tables[0])


def test_a_service_without_a_model_waits(tables: tuple[Table, Table]) -> None:
    _, table = tables
    deliver(
        table,
        service("sticky", "10.96.7.7", sessionAffinity="ClientIP"),
        endpoint_slice("sticky", [endpoint("10.244.9.9")]),
    )
    deliver(
        table,
        service("plain", "10.96.7.8"),
        endpoint_slice("plain", [endpoint(f"10.244.8.{n}") for n in range(1, 8)]),
    )
    assert [str(name) for name in table.sync(Family.IPv4, []).refused] == ["default/sticky"]
