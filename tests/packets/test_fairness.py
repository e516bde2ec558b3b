"""Every endpoint of a list gets its share of new connections (contract 3.4.9)."""

import math
from collections import Counter
from collections.abc import Iterator

import pytest

from nftproxy.lab.client import Answer
from tests.support.frontends import WIRES, Kind, Web, Wire, route_outside
from tests.support.world import World

CONNECTIONS = 3000
TOO_RARE = 1e-5  # four tests: one run in 25 000 fails though the choice is fair
SEVEN = tuple(
    f"pod{node}-{number}"
    for node, number in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3))
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(lab={"pods": 5}) as world:
        route_outside(world)
        yield world


def chance(counts: Counter[str], endpoints: int) -> float:
    """How probable it is that a fair choice is at least as uneven: Pearson's chi-squared test."""
    expected = counts.total() / endpoints
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    statistic += (endpoints - len(counts)) * expected
    half = statistic / 2  # the degrees of freedom are even, so the tail is a finite sum
    return math.exp(-half) * sum(half**k / math.factorial(k) for k in range((endpoints - 1) // 2))


@pytest.mark.contract("3.4.9")
@pytest.mark.parametrize(
    ("wire", "kind", "endpoints"),
    [
        (WIRES[0], "cluster", SEVEN[2:5]),
        (WIRES[3], "cluster", SEVEN),
        (WIRES[1], "vip", SEVEN),
        (WIRES[2], "nodeport", SEVEN[:3]),
    ],
    ids=lambda value: (
        str(value) if not isinstance(value, tuple) or isinstance(value, Wire) else str(len(value))
    ),
)
def test_every_endpoint_gets_its_share(
    world: World, wire: Wire, kind: Kind, endpoints: tuple[str, ...]
) -> None:
    web = Web(world)
    web.apply(*endpoints)
    counts: Counter[str] = Counter()
    for _ in range(CONNECTIONS):
        outcome = world.connect("client", *web.at(kind, wire))
        assert isinstance(outcome, Answer)
        counts[outcome.name] += 1
    assert set(counts) == set(endpoints)
    assert chance(counts, len(endpoints)) > TOO_RARE, counts


@pytest.mark.parametrize(
    ("counts", "endpoints", "fair"),
    [
        ({"a": 1000, "b": 1000, "c": 1000}, 3, True),
        ({"a": 1060, "b": 980, "c": 960}, 3, True),
        ({"a": 1150, "b": 925, "c": 925}, 3, False),
        ({"a": 1500, "b": 1500}, 3, False),
        (dict.fromkeys("abcdefg", 428), 7, True),
        ({**dict.fromkeys("abcdef", 410), "g": 540}, 7, False),
    ],
)
def test_the_bound_tells_fair_from_unfair(
    counts: dict[str, int], endpoints: int, fair: bool
) -> None:
    """12 percent more than the others are noticed; what a fair choice may do by chance is not."""
    assert (chance(Counter(counts), endpoints) > TOO_RARE) == fair
