"""Services with many slices: the lists are those of reading everything."""

import random
from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nftproxy.address import Family
from nftproxy.chunks import Chunks, difference
from nftproxy.largeservice import LargeService
from nftproxy.model import EndpointSlice, Service
from nftproxy.selection import Endpoint, Locality, View, by_port, lists, view
from nftproxy.table.slots import Slots, changed, settle
from tests.support.objects import endpoint, endpoint_slice, service

HERE = Locality("node1", "a")
SLICES = 4


def slots_of(numbers: Iterable[int], chunk: int = 50) -> Chunks[Endpoint]:
    return Chunks.of((Endpoint(f"10.0.{n // 250}.{n % 250}", 80) for n in numbers), chunk)


# --- slots ----------------------------------------------------------------------------------------


def steps() -> st.SearchStrategy[list[list[int]]]:
    """Lists of endpoints, one after the other, each long and unlike the one before."""
    one = st.builds(
        lambda seed, size: random.Random(seed).sample(range(600), size),
        st.integers(0, 2**32),
        st.integers(65, 400),
    )
    return st.lists(one, min_size=2, max_size=5)


@settings(max_examples=60)
@given(wanted=steps(), keep=st.booleans())
def test_long_lists_keep_their_slots(wanted: list[list[int]], keep: bool) -> None:
    """Who stays keeps its slot, unless the list ends before it; the differing slots are named."""
    before: Any = slots_of(wanted[0])
    for numbers in wanted[1:]:
        known = before.wanted if keep and isinstance(before, Slots) else ()
        kept = known.chunks[:-1] if isinstance(known, Chunks) else ()
        had = {each for chunk in kept for each in chunk}
        new = Chunks([*kept, tuple(each for each in slots_of(numbers) if each not in had)])
        after = settle(before, new)
        assert sorted(after) == sorted(new)
        was, now = tuple(before), tuple(after)
        for slot, each in enumerate(was[: len(now)]):
            if each in set(now):
                assert now[slot] == each
        differing = {slot: (old, come) for slot, old, come in changed(before, after)}
        length = max(len(was), len(now))
        both = zip(
            was + (None,) * (length - len(was)), now + (None,) * (length - len(now)), strict=True
        )
        assert differing == {n: pair for n, pair in enumerate(both) if pair[0] != pair[1]}
        assert after != before or not differing
        before = after


def test_one_endpoint_replaces_one_chunk() -> None:
    first = slots_of(range(500))
    second = Chunks(
        [*first.chunks[:3], (*first.chunks[3][1:], Endpoint("10.9.9.9", 80)), *first.chunks[4:]]
    )
    assert difference(first, second) == ([Endpoint("10.0.0.150", 80)], [Endpoint("10.9.9.9", 80)])
    third = Chunks([*second.chunks[:3], first.chunks[3], *second.chunks[4:]])
    before = settle(settle(first, second), third)
    after = settle(before, second)
    assert isinstance(before, Chunks)
    assert isinstance(after, Chunks)
    different = [
        n
        for n, (was, now) in enumerate(zip(before.chunks, after.chunks, strict=True))
        if was is not now
    ]
    assert len(different) == 1
    assert list(changed(before, after)) == [
        (150, Endpoint("10.0.0.150", 80), Endpoint("10.9.9.9", 80))
    ]


def test_short_and_long_lists_meet() -> None:
    """A list becomes long or short: the slots are as stable as ever."""
    short, long = tuple(slots_of(range(60))), slots_of(range(100))
    grown = settle(short, long)
    assert tuple(grown)[:60] == short
    assert tuple(settle(grown, short)) == short


# --- lists ----------------------------------------------------------------------------------------

conditions = st.fixed_dictionaries(
    {},
    optional={
        "ready": st.booleans(),
        "serving": st.booleans(),
        "terminating": st.booleans(),
        "zones": st.sampled_from([[], ["a"], ["b"], ["a", "b"]]),
        "nodes": st.sampled_from([[], ["node1"], ["node2"]]),
    },
)
members = st.lists(
    st.builds(
        lambda number, node, more: endpoint(number, node, **more),
        st.one_of(st.integers(1, 30).map("10.0.0.{}".format), st.sampled_from(["127.0.0.1", "x"])),
        st.sampled_from(["node1", "node2", ""]),
        conditions,
    ),
    max_size=8,
)
pieces = st.builds(
    lambda number, found, port, names: (number, found, port, names),
    st.integers(0, SLICES),
    members,
    st.sampled_from([8080, 9090]),
    st.sampled_from([("http",), ("http",), ("http", "http"), ("other",)]),
)
specs = st.sampled_from(
    [
        {},
        {"internalTrafficPolicy": "Local"},
        {"node_port": 30000, "externalTrafficPolicy": "Local"},
    ]
)


def slice_of(number: int, found: list[Any], port: int, names: tuple[str, ...]) -> EndpointSlice:
    ports = [{"name": name, "port": port + n, "protocol": "TCP"} for n, name in enumerate(names)]
    return endpoint_slice("web", found, name=f"web-{number}", ports=ports)


def seen(of: Service) -> View:
    found = view(of, Family.IPv4, [])
    assert found is not None
    return found


@settings(max_examples=150)
@given(spec=specs, changes=st.lists(pieces, min_size=1, max_size=8))
def test_the_same_lists_as_from_everything(
    spec: dict[str, Any], changes: list[tuple[int, list[Any], int, tuple[str, ...]]]
) -> None:
    """After each change of a slice, one of which goes again by turns; notes included."""
    web = service(**spec)
    (port,) = web.spec.ports or ()
    known = LargeService(web, Family.IPv4, HERE)
    there: dict[str, EndpointSlice] = {}
    for turn, change in enumerate(changes):
        piece = slice_of(*change)
        there[piece.metadata.name] = piece
        if turn % 3 == 2:
            there.pop(f"web-{turn % SLICES}", None)
        slices = tuple(there.values())
        notes: list[str] = []
        expected_notes: list[str] = []
        found = known.lists(seen(web), port, slices, Family.IPv4, HERE, notes)
        expected = lists(seen(web), port, slices, Family.IPv4, HERE, expected_notes)
        assert sorted(found.cluster) == sorted(expected.cluster)
        assert sorted(found.local) == sorted(expected.local)
        assert sorted(found.here) == sorted(expected.here)
        assert found.usable_anywhere == expected.usable_anywhere
        assert set(notes) == set(expected_notes)
        having = by_port(slices, Family.IPv4)(port)
        notes.clear()
        assert lists(seen(web), port, having, Family.IPv4, HERE, notes) == expected
        assert notes == expected_notes


def test_slices_by_port() -> None:
    """Each has one port left; another type of address is for every port to complain about."""
    names = ("a", "b", "a")
    both = slice_of(1, [endpoint("10.0.0.1")], 8080, names)
    other = endpoint_slice("web", [endpoint("example.org")], name="web-2", family="FQDN")
    web = service(ports=[{"name": name, "port": port} for name, port in (("a", 1), ("b", 2))])
    having = by_port([both, other], Family.IPv4)
    found = [having(port) for port in web.spec.ports or ()]
    assert [[[p.port for p in piece.ports or ()] for piece in each] for each in found] == [
        [[8080, 8082], [8080]],
        [[8081], [8080]],
    ]
    assert all(each[-1] is other for each in found)
