"""The page's pure parts: rates, charts, the picture of a path, and templates that escape."""

from collections import Counter

import msgspec
import pytest

from nftproxy.address import Family
from nftproxy.kernel.snapshot import AddressKind, Listed, Shown, ShownRefusal, ShownServicePort
from nftproxy.monitoring.activity import Busy
from nftproxy.page import charts, rendering
from nftproxy.page.drawing import WIDTH, Drawing, draw
from nftproxy.page.rates import KEPT, Rate, Rates, counts
from nftproxy.path.model import (
    Candidate,
    Client,
    Origin,
    Outcome,
    Path,
    Place,
    PlaceKind,
    Reach,
    Step,
    Target,
)
from nftproxy.selection import Endpoint
from nftproxy.table.schema import Policy, Reason

HOSTILE = "<script>alert(1)</script>\"'&"


def port(name: str, connections: int, refused: int = 0) -> ShownServicePort:
    shown = Shown(
        Family.IPv4,
        AddressKind.CLUSTER_IP,
        "10.96.0.10",
        "tcp",
        80,
        Policy.CLUSTER,
        connections,
        (Listed("10.244.1.2", 8080, connections),),
        (),
        ShownRefusal("reject", "no endpoint in the cluster", refused),
        None,
        None,
    )
    return ShownServicePort(name, (shown,))


def step(name: str, outcome: Outcome = Outcome.OK, endpoint: str = "") -> Step:
    return Step(name, Place(PlaceKind.TABLE), "looked up", "came out", outcome, endpoint=endpoint)


PATH = Path(
    Origin.COMPUTED,
    Target("default/web", "10.96.0.10", 80, "tcp", "default/web:http", "ClusterIP"),
    Client("10.244.1.9", "pod"),
    Reach.NO,
    steps=(
        step("services4"),
        step("route", endpoint="10.244.1.2:8080"),
        step("forward", Outcome.STOPPED, "10.244.1.2:8080"),
    ),
    candidates=(
        Candidate("10.244.1.2", 8080, used=True, share=1.0, reach=Reach.NO),
        Candidate("10.244.9.1", 8080, used=False, reason="not ready"),
    ),
)


def names(drawing: Drawing) -> list[str]:
    return [stop.texts[0].text for stop in drawing.stations]


def busy(connections: int, **reasons: int) -> Busy:
    refused = Counter({Reason[name]: packets for name, packets in reasons.items()})
    return Busy(connections, refused)


def enter(rates: Rates, *, seconds: float = 1, at: float = 0, **services: Busy) -> None:
    """Enter a reading of the service ports a and b."""
    refused = sum((one.refused for one in services.values()), Counter())
    rates.enter(services, refused, {"a", "b"}, seconds, at)


def test_rates_and_refusals_are_those_of_a_reading() -> None:
    rates = Rates()
    enter(rates)
    assert rates.rate("a") == Rate(0, 0)
    enter(rates, seconds=2, at=100, a=busy(20, NO_ENDPOINTS=4))
    assert rates.rate("a") == Rate(10, 2)
    assert [tuple(each) for each in rates.refusals] == [(100, "a", "no usable endpoint", 4)]
    assert rates.line("a") == [0, 10]
    assert rates.line("b") == [0, 0], "who was never busy has a line, too"


def test_refusals_that_no_service_counts() -> None:
    rates = Rates()
    all_reasons = Counter({Reason.NO_ENDPOINTS: 4, Reason.UNKNOWN_PORT: 3})
    rates.enter({"a": busy(0, NO_ENDPOINTS=4)}, all_reasons, {"a"}, 1, 0)
    assert {(each.service, each.reason, each.packets) for each in rates.refusals} == {
        ("a", "no usable endpoint", 4),
        ("", "the ClusterIP has no such port", 3),
    }


def test_a_service_that_is_idle_or_removed_is_forgotten_and_history_has_an_end() -> None:
    rates = Rates()
    for _ in range(KEPT + 5):
        enter(rates, a=busy(1), b=busy(1))
    assert len(rates.line("a")) == KEPT
    for _ in range(KEPT):
        assert rates.histories
        enter(rates)
    assert rates.histories == {}
    enter(rates, a=busy(1))
    rates.enter({}, Counter(), {"b"}, 1, 0)
    assert rates.histories == {}


def test_the_endpoints_of_a_service_are_counted_over_all_addresses() -> None:
    twice = msgspec.structs.replace(port("a/b", 10), frontends=port("a/b", 10).frontends * 2)
    assert counts(twice) == {Endpoint("10.244.1.2", 8080): 20}


@pytest.mark.parametrize(
    ("values", "points"),
    [
        ([], ""),
        ([0.0, 0.0], "117.97,23.0 120.0,23.0"),
        ([5.0], "120.0,1.0"),
        ([0.0, 5.0, 10.0], "115.9,23.0 118.0,12.0 120.0,1.0"),
    ],
)
def test_sparkline(values: list[float], points: str) -> None:
    drawn = charts.sparkline(values, 60)
    assert len(drawn.split()) == len(values)
    assert [round(float(pair.split(",")[1])) for pair in drawn.split()] == [
        round(float(pair.split(",")[1])) for pair in points.split()
    ]
    assert not values or drawn.split()[-1].startswith("120.0,")


def test_a_bar_has_a_part_for_each_share() -> None:
    assert [part.width for part in charts.bar([3, 1])] == [90, 30]
    assert [part.x for part in charts.bar([3, 1])] == [0, 90]
    assert [part.width for part in charts.bar([0, 0])] == [60, 60]
    assert charts.bar([]) == []


def test_stations_are_in_the_order_of_the_packet() -> None:
    drawing = draw(PATH)
    assert names(drawing) == [
        "10.244.1.9",
        "services4",
        "10.244.1.2:8080",
        "route",
        "forward",
        "10.244.9.1:8080",
    ]
    assert [stop.y for stop in drawing.stations] == sorted(stop.y for stop in drawing.stations)
    assert [stop.kind for stop in drawing.stations][-2:] == ["stopped", "out"]
    assert drawing.title == "A connection from 10.244.1.9 to default/web does not get through"


def test_the_line_to_an_endpoint_starts_where_the_ways_part() -> None:
    _, services, endpoint, route, forward, out = draw(PATH).stations
    assert (endpoint.start_x, endpoint.start_y) == (services.x, services.y)
    assert (forward.start_x, forward.start_y) == (route.x, route.y)
    assert not out.is_joined
    assert endpoint.width == 8


def test_how_an_endpoint_is_reached_stands_beside_it() -> None:
    there = msgspec.structs.replace(
        step("endpoint", endpoint="10.244.1.2:8080"), came_out="route dev cni0"
    )
    path = msgspec.structs.replace(PATH, steps=(*PATH.steps[:1], there, *PATH.steps[2:]))
    assert names(draw(path)) == [
        "10.244.1.9",
        "services4",
        "10.244.1.2:8080",
        "forward",
        "10.244.9.1:8080",
    ]
    _, _, endpoint, *_ = draw(path).stations
    assert [line.text for line in endpoint.texts[1:]] == [
        "100% of new connections",
        "route dev cni0",
    ]


def test_many_endpoints_are_counted_and_not_drawn() -> None:
    many = tuple(Candidate(f"10.244.1.{n}", 80, used=True, share=0.05) for n in range(20))
    drawing = draw(msgspec.structs.replace(PATH, candidates=many))
    assert names(drawing)[-1] == "8 more endpoints"


def test_no_text_is_wider_than_the_picture() -> None:
    wide = msgspec.structs.replace(step("s"), came_out="word " * 60, looked_up="x" * 200)
    for stop in draw(msgspec.structs.replace(PATH, steps=(wide,))).stations:
        for line in stop.texts:
            assert line.x + 6.6 * len(line.text) < WIDTH


def test_names_never_become_markup() -> None:
    path = msgspec.structs.replace(PATH, target=msgspec.structs.replace(PATH.target, asked=HOSTILE))
    page = rendering.render(
        "explain.html",
        node=HOSTILE,
        trouble=HOSTILE,
        to=HOSTILE,
        source=HOSTILE,
        protocol=HOSTILE,
        path=path,
        drawing=draw(path),
        problem=None,
    ).decode()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;") >= 5


def test_addresses_of_pages_are_quoted() -> None:
    assert rendering.address_of("a/b:http") == "/service/a/b:http"
    assert rendering.address_of("a/<b>?x#y") == "/service/a/%3Cb%3E%3Fx%23y"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.04, "<0.1"), (1.25, "1.2"), (12.6, "13"), (1234.0, "1234")]
)
def test_rates_are_short(value: float, text: str) -> None:
    assert rendering.rate(value) == text
