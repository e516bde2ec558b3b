"""A plan changes nothing that it is given, and says the same for the same basis."""

import copy
from typing import Any

import pytest

from nftproxy.address import Family, parse_address, parse_network
from nftproxy.table import plan as plan_module
from nftproxy.table.batch import Batch
from nftproxy.table.delta import Delta
from nftproxy.table.packing import pack_value, shape
from nftproxy.table.plan import Empty, InStep, ReadBack, node_elements, plan
from nftproxy.table.remembered import Remembered
from tests.unit.test_difference import Table, compiled, fresh, key

EVERYTHING: dict[str, Any] = {
    "vips": ["203.0.113.1"],
    "node_port": 30080,
    "externalTrafficPolicy": "Local",
}


def packed(table: Table) -> dict[str, dict[bytes, bytes]]:
    found: dict[str, dict[bytes, bytes]] = {}
    for where, items in table.items():
        held = shape(where)
        assert held
        found[where] = {
            held.key.pack(each): pack_value(value, held.value) for each, value in items.items()
        }
    return found


def written(batches: list[Batch]) -> int:
    return sum(len(batch.delta) for batch in batches)


def test_what_was_read_back_is_not_written_again_and_stays_as_it_was() -> None:
    model = fresh(web=compiled(pods=3, **EVERYTHING), old=compiled("old", cluster_ip="10.96.0.11"))
    read = packed(model.table)
    before = copy.deepcopy(read)
    wanted = {
        key("web"): compiled(pods=3, **EVERYTHING),
        key("old"): compiled("old", cluster_ip="10.96.0.11"),
    }
    assert written(list(plan(Remembered(Family.IPv4), [wanted], ReadBack(read)))) == 0
    assert read == before
    del wanted[key("old")]
    whole = Delta()
    for batch in plan(Remembered(Family.IPv4), [wanted], ReadBack(read)):
        whole.merge(batch.delta)
    assert not whole.added
    gone = {
        where for where, items in model.table.items() if any("10.96.0.11" in each for each in items)
    }
    assert gone == {"services4", "endpoints4-tcp", "cluster_ips4"}
    assert gone <= set(whole.removed) | set(whole.late)
    assert read == before


def test_what_is_remembered_stays_as_it_was_until_it_is_told() -> None:
    model = fresh(web=compiled(pods=3))
    before = copy.deepcopy(vars(model.remembered))
    first, second = (
        list(plan(model.remembered, [{key("web"): compiled(pods=2)}], InStep())) for _ in range(2)
    )
    for attribute in ("removed", "added", "late"):
        assert [getattr(each.delta, attribute) for each in first] == [
            getattr(each.delta, attribute) for each in second
        ]
    assert vars(model.remembered).keys() == before.keys()
    assert (model.remembered.routes, model.remembered.shared) == (
        before["routes"],
        before["shared"],
    )


def test_batches_are_cut_by_size_halved_and_what_is_slow_comes_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "BATCH", 10)
    wanted = {
        key(f"web{n}"): compiled(f"web{n}", 3, cluster_ip=f"10.96.0.{10 + n}") for n in range(9)
    }
    slow = {key("web0"), key("web4")}
    batches = list(
        plan(
            Remembered(Family.IPv4),
            [wanted],
            Empty(),
            alone=lambda change: not slow.isdisjoint(change.services),
        )
    )
    names = [[name for change in batch.changes for name in change.services] for batch in batches]
    assert names[-2:] == [[key("web0")], [key("web4")]]
    assert sorted(name for each in names for name in each) == sorted(wanted)
    big = next(batch for batch in batches if len(batch.changes) > 1)
    halves = list(big.halves())
    assert [change for half in halves for change in half.changes] == big.changes
    assert all(0 < len(half.delta) < len(big.delta) for half in halves)
    assert list(batches[-1].halves()) == []


def test_the_second_half_knows_what_became_of_the_first() -> None:
    """One service lets go of a shared element that another takes up.

    If they are written apart, it must be there at the end.
    """
    model = fresh(a=compiled("a", [2]), b=compiled("b", [], cluster_ip="10.96.0.11"))
    wanted = {key("a"): compiled("a", []), key("b"): compiled("b", [2], cluster_ip="10.96.0.11")}
    (batch,) = plan(model.remembered, [wanted], InStep())
    for half in batch.halves():
        model.commit(half.delta)
        model.remembered.accept(half.changes, half.delta)
    model.late(model.remembered.late)
    assert model == fresh(a=compiled("a", []), b=compiled("b", [2], cluster_ip="10.96.0.11"))


def test_what_is_said_of_the_node() -> None:
    """What is not known is left out; nothing at all is something else."""
    addresses, networks = [parse_address("192.168.50.11")], [parse_network("10.96.0.0/16")]
    assert node_elements(Family.IPv4, addresses, networks) == {
        "nodeport_ips4": [("192.168.50.11",)],
        "service_cidrs4": [("10.96.0.0/16",)],
    }
    assert node_elements(Family.IPv6, (), None) == {"nodeport_ips6": []}
