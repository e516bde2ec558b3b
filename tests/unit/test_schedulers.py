"""Schedulers and weights without a kernel: annotations, slots, and which clients a change moves."""

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from nftproxy import annotations
from nftproxy.address import Family, pack
from nftproxy.annotations import FULL
from nftproxy.largeservice import LargeService
from nftproxy.model import EndpointSlice, Scheduler, Service
from nftproxy.routes import Compiled, Context, Refusal, compile_service
from nftproxy.selection import Endpoint, Locality, local_ready, serving
from nftproxy.table import maglev, schema
from nftproxy.table.jhash import jhash
from nftproxy.table.program import Program
from nftproxy.table.shares import scheduled
from nftproxy.table.slots import settle
from tests.support.objects import annotated, endpoint, endpoint_slice, service
from tests.support.world import settings

CONTEXT = Context(Family.IPv4, Locality("node1", ""), "192.168.50.11")
# The hashes of 10 000 addresses
CLIENTS = [jhash(pack(f"10.{n // 250}.{n % 250}.7"), schema.SEED) for n in range(10_000)]
HOSTILE = [
    "", " ", "Random", "maglev ", "random\n", "source_hash", "x" * 10_000, "маглев", "{}", "0",
    "; flush ruleset", "\0", "%s{}", "random,maglev",
]  # fmt: skip
NO_WEIGHTS = [
    "", " ", "-1", "+1", "101", "1000", "1e1", "10.0", "0x10", "٣", "²", "10 ", "1_0", "9" * 5000,
    "ten", "NaN",
]  # fmt: skip


def endpoints(number: int, first: int = 0) -> tuple[Endpoint, ...]:
    """Some endpoints."""
    return tuple(
        Endpoint(f"10.244.{each // 250}.{each % 250 + 1}", 8080)
        for each in range(first, first + number)
    )


def moved(before: Iterable[Endpoint], after: Iterable[Endpoint]) -> float:
    """Return the share of the clients that get another endpoint."""
    old, new = tuple(before), tuple(after)
    changed = sum(old[one * len(old) >> 32] != new[one * len(new) >> 32] for one in CLIENTS)
    return changed / len(CLIENTS)


def table(of: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    return maglev.table(dict.fromkeys(of, FULL))


def compiled(
    value: str | None, weights: Iterable[str | None], notes: list[str] | None = None, **spec: Any
) -> Compiled:
    """Compile a Service with a scheduler and slices of three endpoints with these weights."""
    slices = [
        annotated(
            endpoint_slice(
                endpoints=[endpoint(each.address) for each in endpoints(3, 3 * number)],
                name=f"web-{number}",
            ),
            weight=weight,
        )
        for number, weight in enumerate(weights)
    ]
    found = compile_service(
        annotated(service(**spec), scheduler=value),
        slices,
        CONTEXT,
        [] if notes is None else notes,
    )
    assert found
    return found


# --- annotations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_an_unknown_scheduler_is_random_and_is_named(value: str) -> None:
    notes: list[str] = []
    assert compiled(value, [None], notes) == compiled(None, [None])
    assert len(notes) == 1
    assert "nftproxy.io/scheduler" in notes[0]
    assert len(notes[0]) < 400
    assert notes[0].isprintable()


@pytest.mark.parametrize("value", NO_WEIGHTS, ids=lambda text: ascii(text[:12]))
def test_an_unknown_weight_counts_as_none_and_is_named(value: str) -> None:
    notes: list[str] = []
    assert compiled(None, [value], notes) == compiled(None, [None])
    assert len(notes) == 1
    assert "nftproxy.io/weight" in notes[0]
    assert "web-0" in notes[0]
    assert notes[0].isprintable()


@pytest.mark.parametrize("value", ["0", "1", "007", "99", "100"])
def test_weights(value: str) -> None:
    piece = annotated(endpoint_slice(), weight=value)
    notes: list[str] = []
    assert annotations.weight(piece, notes) == int(value)
    assert not notes


def test_problems_are_told_once_until_they_change() -> None:
    """Those of a Service and of all its slices, for the event; both families look at each."""
    problems = annotations.Problems()
    pieces = [annotated(endpoint_slice(name=name), weight="x") for name in ("a", "b")]
    wrong, right = (annotated(service(), scheduler=each) for each in ("x", "maglev"))
    name = wrong.metadata.key
    ((told, text),) = problems.new({name: (wrong, pieces)})
    assert told == name
    assert text.count("annotation nftproxy.io/") == 3
    assert not list(problems.new({name: (wrong, pieces)}))
    assert [text for _, text in problems.new({name: (right, pieces[:1])})] != [text]
    assert not list(problems.new({name: (right, ())}))
    assert not list(problems.new({name: (None, ())}))
    assert len(list(problems.new({name: (wrong, pieces)}))) == 1


# --- weight 0 -------------------------------------------------------------------------------------


def test_an_endpoint_of_weight_zero_takes_no_new_connection() -> None:
    (route,) = compiled(None, ["0", None]).routes
    assert set(route.cluster) == set(endpoints(3, 3))
    assert len(route.cluster) == 3, "without other weights, each has one slot"


def test_all_of_weight_zero_refuse_as_without_endpoints() -> None:
    for scheduler in Scheduler:
        (route,) = compiled(scheduler, ["0", "0"]).routes
        assert not route.cluster
        assert route.refusal is Refusal.REJECT


def test_a_client_does_not_stay_with_an_endpoint_of_weight_zero() -> None:
    (affinity,) = compiled("maglev", ["0", None], sessionAffinity="ClientIP").affinities
    assert set(affinity.cluster) == set(endpoints(3, 3))
    assert affinity.picks == ("maglev-pick4-tcp-2048",)


def test_flows_of_udp_keep_an_endpoint_of_weight_zero() -> None:
    one = service()
    piece = annotated(endpoint_slice(endpoints=[endpoint("10.244.0.1", "node1")]), weight="0")
    (port,) = one.spec.ports or ()
    assert serving([piece], port, Family.IPv4) == (Endpoint("10.244.0.1", 8080),)
    assert local_ready(one, [piece], Family.IPv4, "node1") == frozenset()


# --- slots ----------------------------------------------------------------------------------------


def test_at_random_without_weights_the_list_stays_as_it_is() -> None:
    some = endpoints(3)
    assert scheduled(some, {}, Scheduler.RANDOM) is some
    assert scheduled(some, dict.fromkeys(endpoints(1, 7), 3), Scheduler.RANDOM) is some


@pytest.mark.parametrize("scheduler", [Scheduler.RANDOM, Scheduler.SOURCE_HASH])
@pytest.mark.parametrize(
    ("weights", "slots"),
    [((50, 100), (1, 2)), ((100, 100), (1, 1)), ((7, 7, 7), (1, 1, 1)), ((3, 10), (3, 10))],
)
def test_weights_are_slots(
    scheduler: Scheduler, weights: tuple[int, ...], slots: tuple[int, ...]
) -> None:
    some = endpoints(len(weights))
    found = Counter(scheduled(some, dict(zip(some, weights, strict=True)), scheduler))
    assert tuple(found[each] for each in some) == slots


def test_many_weights_make_a_bounded_list() -> None:
    some = endpoints(1000)
    weights = {each: 1 + number % 100 for number, each in enumerate(some)}
    found = Counter(scheduled(some, weights, Scheduler.RANDOM))
    assert set(found) == set(some)
    assert found.total() <= 8 * 1000 + 1000
    assert found[some[99]] == pytest.approx(100 * 8 * 1000 / sum(weights.values()), abs=1)


def test_weighed_slots_are_stable_at_random() -> None:
    one, two, three = endpoints(3)
    before = (one, two, two, three)
    assert settle(before, (one, two, three)) == (one, two, three)
    assert settle(before, (one, one, three, three)) == (one, one, three, three)
    assert settle((three, one, one), (one, two, three)) == (three, one, two)


@pytest.mark.parametrize("scheduler", [Scheduler.SOURCE_HASH, Scheduler.MAGLEV])
def test_slots_by_address_do_not_depend_on_order_or_history(scheduler: Scheduler) -> None:
    some = endpoints(20)
    weights = {some[3]: 10, some[4]: 20}
    expected = scheduled(some, weights, scheduler)
    assert scheduled(tuple(reversed(some)), weights, scheduler) == expected
    assert scheduled(list(some), dict(reversed(weights.items())), scheduler) == expected


@pytest.mark.parametrize("scheduler", Scheduler)
@pytest.mark.parametrize("weights", [(None, None), ("10", None), ("0", "3")])
def test_a_service_of_many_slices_has_the_same_slots(
    scheduler: Scheduler, weights: tuple[str | None, ...]
) -> None:
    one = annotated(service(), scheduler=scheduler)
    large = LargeService(one, Family.IPv4, CONTEXT.here)

    def slices(weights: Iterable[str | None]) -> list[EndpointSlice]:
        return [
            annotated(
                endpoint_slice(
                    endpoints=[endpoint(each.address) for each in endpoints(40, 40 * number)],
                    name=f"web-{2 - number}",
                ),
                weight=weight,
            )
            for number, weight in enumerate(weights)
        ]

    for given in (weights, (None, None), weights):
        pieces = slices(given)
        small = compile_service(one, pieces, CONTEXT, [])
        found = compile_service(one, pieces, CONTEXT, [], large.lists)
        assert small
        assert found
        assert Counter(found.routes[0].cluster) == Counter(small.routes[0].cluster)
        if scheduler is not Scheduler.RANDOM:
            assert found.routes[0].cluster == small.routes[0].cluster


# --- maglev ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 3, 10, 100])
def test_one_that_goes_or_comes_moves_few_clients(number: int) -> None:
    """At most 1.25 times what has to move: slots, whichever it is; and 10 000 clients in the mean.

    Of these, 100 endpoints have 100 each, give or take 10 by chance.
    """
    some = endpoints(number)
    before = table(some)
    gone = [table(each for each in some if each != one) for one in some[:: max(1, number // 10)]]
    come = [table((*some, *endpoints(1, 1000 + n))) for n in range(min(number, 10))]
    for after in (gone, come):
        slots = [
            sum(map(operator.ne, before, each)) / len(before)
            for each in after
            if len(each) == len(before)
        ]
        assert len(slots) == len(after)
        assert max(slots) <= 1.25 / number
        clients = [moved(before, each) for each in after]
        assert sum(clients) / len(clients) <= 1.25 / number
        assert min(clients) > 0.5 / number, "some do move"


@pytest.mark.parametrize("number", [2, 3, 10, 32, 100])
def test_nobody_has_much_more_than_a_fair_share(number: int) -> None:
    found = table(endpoints(number))
    counts = Counter(found)
    assert set(counts) == set(endpoints(number))
    assert max(counts.values()) <= 1.1 * len(found) / number + 1


def test_what_a_change_of_source_hash_moves_is_more() -> None:
    some = endpoints(10)
    assert moved(some, some[1:]) > 0.4


def test_weights_are_shares_of_a_table() -> None:
    some = endpoints(3)
    counts = Counter(maglev.table(dict(zip(some, (100, 50, 10), strict=True))))
    assert [counts[each] / 2048 for each in some] == pytest.approx(
        [10 / 16, 5 / 16, 1 / 16], rel=0.12
    )


@pytest.mark.parametrize(("number", "size"), [(1, 2048), (32, 2048), (33, 16384), (257, 65536)])
def test_sizes(number: int, size: int) -> None:
    assert len(table(endpoints(number))) == size


def test_no_endpoint_no_table() -> None:
    assert maglev.table({}) == ()


def test_all_ports_of_a_service_send_a_client_to_the_same_address() -> None:
    some = endpoints(5)
    other = tuple(each._replace(port=9090) for each in some)
    assert [e.address for e in table(some)] == [e.address for e in table(other)]


def test_an_address_with_two_ports_has_two_shares() -> None:
    (one,) = endpoints(1)
    counts = Counter(table((one, one._replace(port=9090))))
    assert counts[one] == pytest.approx(1024, rel=0.1)


def test_what_clients_get_is_the_same_in_all_releases() -> None:
    """If this fails, nodes of two releases disagree, and an upgrade moves clients."""
    assert jhash(b"\x0a\xf4\x01\x02", schema.SEED) == 0xCECD1ADB
    some = dict(zip(endpoints(4), (100, 100, 30, 7), strict=True))
    packed = "".join(str(list(some).index(each)) for each in maglev.table(some)[:40])
    assert packed == EXPECTED


EXPECTED = "1231012111202001111220200011103001011100"


def test_chains_by_address_differ_from_those_at_random_in_the_choice_alone() -> None:
    """Only the latter are part of the program's digest: a change of these chains is seen there."""
    program = Program(settings())
    chosen = f"jhash ip saddr mod 3 seed {schema.SEED}"
    for by in ("hash-", "maglev-"):
        for name in ("pick4-tcp-3", "external4-udp-3", "local4-sctp-3", "preserve4-tcp-3-3"):
            for side in ("", "nodeport-"):
                plain = "\n".join(program.pick(f"{side}{name}").values())
                found = "\n".join(program.pick(f"{side}{by}{name}").values())
                assert found.replace(by, "").replace(chosen, "numgen random mod 3") == plain
                assert found != plain


def test_a_weight_of_a_slice_is_no_more_than_a_text() -> None:
    """As in JSON of an API server; a manifest with a bare number is wrong for kubectl, too."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"nftproxy.io/weight": 3}, type(annotated(service()).metadata.annotations))


def test_a_scheduler_is_no_part_of_other_services() -> None:
    assert isinstance(annotated(service(), scheduler=None), Service)
    assert compiled("random", [None]) == compiled(None, [None])
