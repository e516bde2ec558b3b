"""`nftproxy bench`: figures from samples, tables, CSV and charts.

And small runs, of which nothing stays.
"""

import contextlib
import csv
import itertools
import os
import signal
import statistics as standard
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.bench import charts, cli, report, shapes
from nftproxy.bench.bed import Bed, own_name
from nftproxy.bench.client import BenchTarget, Order
from nftproxy.bench.control import Arriving
from nftproxy.bench.measures import ROWS, Measure, MeasurePlace, Row, Sample, Unit
from nftproxy.bench.offer import FEWEST, IPERF_PORT, Offer
from nftproxy.bench.plan import QUICK, BenchPlan
from nftproxy.bench.statistics import Summary, percentile
from nftproxy.bench.traffic import BenchClient, Traffic
from nftproxy.bench.workload import Mix, Workload
from nftproxy.errors import NftproxyError
from nftproxy.lab import build, namespace
from nftproxy.model import EndpointSlice, Service
from tests.support.process import NFTPROXY, PATIENCE

_numbers = itertools.count()
# A real kube-proxy has them
ASKED = {
    Measure.FIRST_SYNC_ASKED,
    Measure.UPDATE_ASKED,
    Measure.RESTART_ASKED,
}
PNG = b"\x89PNG\r\n\x1a\n"


def samples(
    mode: str, measure: Measure, *values: float, size: int = 100, place: str = ""
) -> list[Sample]:
    return [Sample(size, 1, mode, measure, place, value) for value in values]


SOME = [
    *samples("none", Measure.CONNECT, 20e-6, 20e-6, 30e-6, place="end"),
    *samples("nftproxy", Measure.CONNECT, 30e-6, 30e-6, 60e-6, place="end"),
    *samples("nftproxy", Measure.FIRST_SYNC, 0.5),
    *samples("nftproxy", Measure.FIRST_SYNC, 1.0, size=1000),
    *samples("iptables-legacy", Measure.FIRST_SYNC, 2.0),
    *samples("iptables-legacy", Measure.KERNEL, 3e6),
]
ORDER = ["none", "nftproxy", "iptables-legacy", "ipvs"]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_percentiles_are_those_of_the_standard_library(readings: list[float]) -> None:
    expected = standard.quantiles(readings, n=100, method="inclusive")
    assert [percentile(sorted(readings), percent) for percent in range(1, 100)] == pytest.approx(
        expected
    )


def test_percentiles_of_a_single_reading_are_that() -> None:
    assert [percentile([7.0], percent) for percent in (0, 50, 99, 100)] == [7.0] * 4


def test_figures() -> None:
    figures = Summary(SOME, ORDER)
    sync, end = Row(Measure.FIRST_SYNC, "", 50), Row(Measure.CONNECT, "end", 99)
    assert (figures.sizes, figures.modes) == ([100, 1000], ["none", "nftproxy", "iptables-legacy"])
    assert figures.ratio(100, "iptables-legacy", "nftproxy", sync) == 4.0
    assert figures.ratio(1000, "iptables-legacy", "nftproxy", sync) is None
    assert figures.value(100, "nftproxy", end) == pytest.approx(59.4e-6)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        pytest.param(79.04, Unit.SECONDS, "79.0 s", id="seconds"),
        pytest.param(0.9999, Unit.SECONDS, "1.00 s", id="rounded up to the next unit"),
        pytest.param(0.000512, Unit.SECONDS, "512 µs", id="microseconds"),
        pytest.param(3e-8, Unit.SECONDS, "0.03 µs", id="less than the smallest unit"),
        pytest.param(355e6, Unit.BYTES, "355 MB", id="bytes"),
        pytest.param(0.0, Unit.BYTES, "0", id="nothing"),
        pytest.param(-2.5e6, Unit.BYTES, "-2.50 MB", id="less than before"),
        pytest.param(9996.0, Unit.PER_SECOND, "10.0 k/s", id="a rate"),
        pytest.param(1.25e9, Unit.BYTES_PER_SECOND, "1.25 GB/s", id="throughput"),
    ],
)
def test_quantities_for_people(value: float, unit: Unit, text: str) -> None:
    assert report.quantity(value, unit) == text


def test_table() -> None:
    assert report.table(Summary(SOME, ORDER), 100) == [
        ["100 services", "none", "nftproxy", "iptables-legacy"],
        ["first sync", "", "500 ms", "2.00 s 4.00x"],
        ["kernel memory", "", "", "3.00 MB"],
        ["connection, end of the list, p50", "20.0 µs 0.67x", "30.0 µs / 1.50x", ""],
        ["connection, end of the list, p90", "28.0 µs 0.52x", "54.0 µs / 1.93x", ""],
        ["connection, end of the list, p99", "29.8 µs 0.50x", "59.4 µs / 1.99x", ""],
    ]


def test_what_connections_cost_above_routing_is_compared_with_the_floor() -> None:
    floor = samples("floor", Measure.CONNECT, 24e-6, 24e-6, place="end")
    figures = Summary([*SOME, *floor], ["none", "floor", "nftproxy"])
    assert report.table(figures, 100)[-1] == [
        "connection, end of the list, p10, above none; times floor",
        "",
        "4.00 µs 1.00x",
        "10.0 µs 2.50x",
    ]


def test_every_measure_has_a_row() -> None:
    assert {row.measure for row in ROWS} == set(Measure)
    assert len({row.title for row in ROWS}) == len(ROWS)


def test_csv(tmp_path: Path) -> None:
    report.write_samples(tmp_path / "samples.csv", SOME)
    report.write_machine(tmp_path / "machine.csv", {"processor": 'a "fast", one'})
    rows = read(tmp_path / "samples.csv")
    assert list(rows[0].values()) == ["100", "1", "none", "connection", "end", "2e-05", "s"]
    assert [float(row["value"]) for row in rows] == [sample.value for sample in SOME]
    assert read(tmp_path / "machine.csv") == [{"property": "processor", "value": 'a "fast", one'}]


def test_charts(tmp_path: Path) -> None:
    assert charts.draw(Summary(SOME, ORDER), tmp_path) == [
        "latency.svg",
        "latency.png",
        "syncs.svg",
        "syncs.png",
    ]
    assert all(
        (tmp_path / f"{name}.png").read_bytes().startswith(PNG) for name in ("latency", "syncs")
    )
    assert all("</svg>" in (tmp_path / f"{name}.svg").read_text() for name in ("latency", "syncs"))


def test_charts_of_what_there_is(tmp_path: Path) -> None:
    assert charts.draw(Summary([], ORDER), tmp_path) == []
    assert charts.draw(Summary(samples("nftproxy", Measure.UPDATE, 1e-3), ORDER), tmp_path) == [
        "syncs.svg",
        "syncs.png",
    ]


def test_no_charts_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "find_spec", lambda _: None)
    assert not charts.available()
    assert charts.draw(Summary(SOME, ORDER), tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [FEWEST, 6, 100, 1000])
def test_services_that_are_measured_are_none_for_something_else(size: int) -> None:
    offer = Offer(size)
    places = [offer.place(place) for place in MeasurePlace]
    assert len({*places, offer.iperf, offer.datagrams}) == 5
    assert places == sorted(places)
    assert not {offer.iperf, offer.datagrams} & set(offer.spread(64))
    protocols = [
        port.protocol.nft
        for number in range(size)
        for port in offer.load(number).service.spec.ports or ()
    ]
    assert protocols == ["tcp"] * (size - 1) + ["udp"]
    assert offer.target(offer.iperf, proxied=False).port == IPERF_PORT


def test_objects_arrive_one_by_one() -> None:
    load = Arriving(Offer(20, mix=Mix.MIXED))
    assert [each.name for each in load] == [each.name for each in load[0:20]]
    assert load[0].service.spec.type == "LoadBalancer"
    assert load.seconds > 0
    assert load[3].service is not load[3].service


def test_modes_take_turns() -> None:
    plan = BenchPlan((Offer(100),), ("a", "b", "c"), 1, QUICK)
    assert ["".join(plan.turn(number)) for number in range(4)] == ["abc", "bca", "cab", "abc"]


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    offer = Offer(FEWEST)
    with Bed() as bed, Traffic(bed, offer, proxied=False) as traffic:
        yield traffic


def test_what_takes_microseconds_is_measured_on_one_processor(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = traffic._client.pid, traffic._bed.endpoints

    def where() -> list[tuple[set[int], int]]:
        return [(os.sched_getaffinity(pid), os.sched_getscheduler(pid)) for pid in processes]

    def look(self: BenchClient, order: Order) -> list[list[float]]:
        seen.append(where())
        return ask(self, order)

    ask, seen, before = BenchClient.ask, list[object](), where()
    monkeypatch.setattr(BenchClient, "ask", look)
    assert all(
        value > 0
        for readings in (traffic.connections(3), traffic.datagrams(3))
        for _, _, value in readings
    )
    last = {max(os.sched_getaffinity(0))}
    assert seen == [[(last, os.SCHED_OTHER), (last, os.SCHED_BATCH)]] * 2
    assert where() == before


@pytest.mark.parametrize("program", ["/usr/bin/iperf3", None], ids=["iperf3", "our own"])
def test_throughput(traffic: Traffic, monkeypatch: pytest.MonkeyPatch, program: str | None) -> None:
    monkeypatch.setattr("nftproxy.bench.traffic.shutil.which", lambda _: program)
    # The way that is not taken
    monkeypatch.delattr(*((BenchClient, "ask") if program else (Traffic, "_by_iperf")))
    ((measure, place, speed),) = traffic.throughput(1.0)
    assert (measure, place) == (Measure.THROUGHPUT, "")
    assert 1e7 < speed < 1e11


def test_iperf3_says_what_is_wrong(traffic: Traffic) -> None:
    with pytest.raises(
        NftproxyError, match=r"iperf3 through 10\.128\.0\.0:1 failed: .*Connection refused"
    ):
        traffic._iperf_client(BenchTarget("10.128.0.0", 1), 1.0)


@contextlib.contextmanager
def bench(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start a bench; at the end of the block it has ended, and nothing of it stays."""
    mark = f"test-{os.getpid()}-{next(_numbers)}"
    argv = [*NFTPROXY, "bench", *map(str, arguments)]
    environment = {**os.environ, "NFTPROXY_MARK": mark}
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
        assert process.poll() is not None
        assert (namespace.names(f"bench-{process.pid}-*"), marked(mark)) == ([], [])
    finally:
        namespace.kill([process.pid, *marked(mark)])
        process.communicate()
        build.remove(namespace.names(f"bench-{process.pid}-*"))


def marked(mark: str) -> list[int]:
    """Processes that a bench started, or those started.

    What has ended has no environment any more.
    """
    found = []
    for path in Path("/proc").glob("[1-9]*"):
        # Ended meanwhile, or out of reach, which what a test started never is.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if mark.encode() in (path / "environ").read_bytes() and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def test_a_run(tmp_path: Path) -> None:
    with bench(
        "--quick", "--services", "20", "--modes", "none,nftproxy", "--output", tmp_path / "out"
    ) as process:
        output, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    lines = output.splitlines()
    assert lines[0].split() == ["20", "services", "none", "nftproxy"]
    assert (
        lines[-1]
        == f"{tmp_path}/out: samples.csv, machine.csv, latency.svg, latency.png, syncs.svg, "
        "syncs.png"
    )
    rows = read(tmp_path / "out/samples.csv")
    assert {row["measure"] for row in rows if row["mode"] == "nftproxy"} == set(Measure) - {
        Measure.PROGRAMS,
        *ASKED,
    }
    assert {row["measure"] for row in rows if row["mode"] == "none"} == {
        each for each in Measure if each.of_packets
    }
    assert {row["place"] for row in rows if row["measure"] == "connection"} == set(MeasurePlace)
    assert all(float(row["value"]) > 0 for row in rows if row["measure"] != "kernel memory")
    machine = {row["property"]: row["value"] for row in read(tmp_path / "out/machine.csv")}
    assert machine["kernel"] == os.uname().release
    assert "--services 20" in machine["command"]


def test_shapes(tmp_path: Path) -> None:
    """Seven comparisons, each with the ratio of its two figures."""
    with bench("--shapes", "--quick", "--output", tmp_path / "out") as process:
        output, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    header, *lines, last = output.splitlines()
    assert header.split() == ["compared", "first", "second", "ratio"]
    assert last == f"{tmp_path}/out: shapes.csv, machine.csv"
    rows = read(tmp_path / "out/shapes.csv")
    assert len(lines) == len(rows) == len(shapes.pairs(shapes.QUICK))
    for line, row in zip(lines, rows, strict=True):
        first, second = float(row["first"]), float(row["second"])
        assert line.startswith(row["compared"])
        figures = (report.quantity(first, Unit.SECONDS), report.quantity(second, Unit.SECONDS))
        assert line.split()[-5:] == [*" ".join(figures).split(), report.times(first / second)]
        assert second > 1e-6
    machine = {row["property"]: row["value"] for row in read(tmp_path / "out/machine.csv")}
    assert "--shapes" in machine["command"]


def test_shapes_that_end_early(tmp_path: Path) -> None:
    with bench("--shapes", "--output", tmp_path) as process:
        deadline = time.monotonic() + PATIENCE
        while not namespace.names(f"bench-{process.pid}-*"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints) == (130, "")
    assert output.splitlines() == [
        "ended early: the results so far",
        f"{tmp_path}: shapes.csv, machine.csv",
    ]
    assert read(tmp_path / "shapes.csv") == []


def test_what_shapes_are() -> None:
    """As their titles say: the tests of the program show what each costs."""
    for number in (3, 30):
        (many,) = (item for item in shapes.many_ports(number)(0) if isinstance(item, Service))
        assert len(many.spec.ports or ()) == number
    endpoints = [
        len(item.endpoints or ()) for item in shapes.uneven(4) if isinstance(item, EndpointSlice)
    ]
    assert endpoints == [1, 2, 3, 4]
    first, change = shapes.sized(250)(0), shapes.sized(250)(1)
    assert [len(each) for each in (first, change)] == [4, 1]
    assert change != first[1:2]
    for kind, affinity in ((shapes.Sticky, "ClientIP"), (Workload, "None")):
        found = shapes.alike(kind, 20)
        services = [item for item in found(0) if isinstance(item, Service)]
        assert {each.spec.session_affinity for each in services} == {affinity}
        assert (len(services), len(found(1))) == (20, 1)


def test_a_child_that_nobody_hears_ends_without_a_word() -> None:
    """The bench was ended early, while the child had something to say."""
    program = "from nftproxy.bench.lines import say\nwhile True: say({'reading': 1.0})"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == '{"reading":1.0}\n'
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("number", "first"),
    [
        pytest.param(signal.SIGINT, "userspace", id="Ctrl-C, with a process that packets need"),
        pytest.param(signal.SIGTERM, "nftproxy", id="SIGTERM"),
    ],
)
def test_ended_early(tmp_path: Path, number: signal.Signals, first: str) -> None:
    """When the second mode is being set up."""
    with bench(
        "--quick", "--services", "20", "--modes", f"{first},iptables", "--output", tmp_path
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not namespace.processes(namespace.names(f"bench-{process.pid}-3")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        output, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints) == (130, "")
    assert "ended early" in output
    assert "first sync" in {row["measure"] for row in read(tmp_path / "samples.csv")}


def test_what_an_interrupt_has_left_is_removed() -> None:
    """A signal may end the removal of a namespace, too."""
    left = own_name("scratch")
    namespace.create(left)
    with namespace.enter(left):
        process = subprocess.Popen(["sleep", "60"])
    try:

        def interrupted() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENCE)

        assert cli._interrupted(interrupted)
        assert left not in namespace.names(left.partition(".")[0])
        assert process.wait(PATIENCE) == -signal.SIGKILL
        assert not cli._interrupted(lambda: None)
    finally:
        process.kill()
        process.wait()
        build.remove(namespace.names(left.partition(".")[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--services", "2"], "'2' is not a number from 5", id="too few"),
        pytest.param(["--services", "100,many"], "'many' is not a number", id="no number"),
        pytest.param(
            ["--services", "1000", "--endpoints", "0"],
            "too many to have addresses",
            id="no endpoints",
        ),
        pytest.param(["--modes", "nftproxy,magic"], "there is no mode 'magic'", id="no such mode"),
        pytest.param(
            ["--shapes", "--mix", "plain"], "--shapes cannot be used with --mix", id="shapes"
        ),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    with bench(*arguments, "--output", tmp_path / "out") as process:
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert message in complaints
    assert not (tmp_path / "out").exists()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
