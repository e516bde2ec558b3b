"""Events: what is written for what happens, and that nothing that goes wrong with them is felt
elsewhere.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from nftproxy.model import ObjectName
from nftproxy.monitoring import events
from nftproxy.monitoring.events import (
    HEALTH_CHECK_PORT_FAILED,
    HEALTH_SERVER_FAILED,
    METRICS_SERVER_FAILED,
    STARTING,
    ApiSink,
    EventKind,
    Events,
    Journal,
    Regarding,
    Write,
)
from nftproxy.sources.access import Access
from nftproxy.sources.apiserver import ApiConnection
from tests.support.running import eventually

NOW = 1_800_000_000.25
NODE = Regarding.node("node1")
WEB = Regarding.service(ObjectName("shop", "web"))
EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"


@pytest.mark.contract("10.1.1")
@pytest.mark.parametrize(
    ("kind", "regarding", "expected"),
    [
        pytest.param(STARTING, NODE, ("Starting", "Normal", "StartKubeProxy"), id="start"),
        pytest.param(
            HEALTH_SERVER_FAILED,
            NODE,
            ("FailedToStartProxierHealthcheck", "Warning", "StartKubeProxy"),
            id="health",
        ),
        pytest.param(
            METRICS_SERVER_FAILED,
            NODE,
            ("FailedToStartMetricServer", "Warning", "StartKubeProxy"),
            id="metrics",
        ),
        pytest.param(
            HEALTH_CHECK_PORT_FAILED,
            WEB,
            ("FailedToStartServiceHealthcheck", "Warning", "Listen"),
            id="service",
        ),
    ],
)
def test_what_is_written(
    kind: EventKind, regarding: Regarding, expected: tuple[str, str, str]
) -> None:
    write = Journal("kube-proxy-host1").observe((kind, regarding), "something", NOW)
    assert write
    namespace = regarding.namespace or "default"
    assert (write.method, write.path) == ("POST", EVENTS.format(namespace))
    name = write.body["metadata"].pop("name")
    assert name.startswith(f"{regarding.name}.")
    reference = {"apiVersion": "v1", "kind": regarding.kind, "name": regarding.name}
    assert write.body == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": namespace},
        "eventTime": "2027-01-15T08:00:00.250000Z",
        "reportingController": "kube-proxy",
        "reportingInstance": "kube-proxy-host1",
        "reason": expected[0],
        "type": expected[1],
        "action": expected[2],
        "regarding": reference
        | ({"namespace": regarding.namespace} if regarding.namespace else {}),
        "note": "something",
    }


@pytest.mark.contract("10.1.1")
def test_repetitions_are_a_series() -> None:
    journal = Journal("me")
    subject = (HEALTH_CHECK_PORT_FAILED, WEB)
    first = journal.observe(subject, "in use", NOW)
    assert first
    path = f"{EVENTS.format('shop')}/{first.body['metadata']['name']}"

    def counted(count: int, seconds: str) -> Write:
        series = {"count": count, "lastObservedTime": f"2027-01-15T08:00:{seconds}0000Z"}
        return Write("PATCH", path, {"series": series})

    assert journal.next_due is None
    assert journal.observe(subject, "in use", NOW + 1) == counted(2, "01.25"), (
        "the first repetition is told at once"
    )
    assert journal.observe(subject, "in use", NOW + 2) is None, "further ones wait"
    assert journal.observe(subject, "in use", NOW + 3) is None
    assert journal.next_due == NOW + 1 + events.PACE
    assert list(journal.due(NOW + 30)) == []
    assert list(journal.due(NOW + 31)) == [counted(4, "03.25")]
    assert list(journal.due(NOW + 100)) == [], "nothing new"
    again = journal.observe(subject, "in use", NOW + 3 + events.SERIES_ENDS + 1)
    assert again
    assert again.method == "POST", "after a long silence it is a new event"


@pytest.mark.contract("10.1.1")
def test_events_about_different_things_are_different() -> None:
    journal = Journal("me")
    other = Regarding.service(ObjectName("shop", "other"))
    writes = [
        journal.observe((HEALTH_CHECK_PORT_FAILED, each), "in use", NOW) for each in (WEB, other)
    ]
    assert [write and write.method for write in writes] == ["POST", "POST"]


def test_series_that_ended_are_forgotten() -> None:
    journal = Journal("me")
    journal.observe((STARTING, NODE), "", NOW)
    assert list(journal.due(NOW + events.SERIES_ENDS + 1)) == []
    assert not journal._series


def test_long_texts_are_cut_to_what_the_server_takes() -> None:
    write = Journal("me").observe((STARTING, Regarding.node("n" * 253)), "x" * 5000, NOW)
    assert write
    assert len(write.body["metadata"]["name"]) == 253
    assert len(write.body["note"]) == 1024


class ApiServer:
    """Takes events; `trouble` says with which status each of the next requests is answered.

    With None the connection is cut.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, str, dict[str, Any]]] = []
        self.trouble: list[int | None] = []
        self.arrived = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.arrived:
                    kind, token = self.headers["Content-Type"], self.headers["Authorization"]
                    outer.requests.append((self.command, self.path, kind, token, sent))
                    status = outer.trouble.pop(0) if outer.trouble else 201
                    outer.arrived.notify_all()
                if status is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_PATCH = handle_any  # noqa: N815 - names of http.server

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for(self, count: int) -> list[str]:
        """Wait until so many requests have come, and return their methods."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, timeout=10), (
                self.requests
            )
            return [request[0] for request in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    running = ApiServer()
    yield running
    running.close()


@pytest.fixture
def sink(server: ApiServer) -> Iterator[ApiSink]:
    def credentials(**_: bool) -> Access:
        return Access(server=server.url, authorization="Bearer secret")

    connection = ApiConnection(credentials)
    yield ApiSink(connection, timeout=5)
    connection.close()


@pytest.mark.contract("10.1.1", "10.1.2")
def test_events_reach_the_api_server(server: ApiServer, sink: ApiSink) -> None:
    recorder = Events(sink, "host1")
    recorder.record(HEALTH_CHECK_PORT_FAILED, WEB, "in use")
    recorder.record(HEALTH_CHECK_PORT_FAILED, WEB, "in use")
    assert server.wait_for(2) == ["POST", "PATCH"]
    recorder.close(5)
    (_, path, kind, _, created), (_, patched, patch_kind, _, patch) = server.requests
    assert (path, kind) == (EVENTS.format("shop"), "application/json")
    assert created["reportingInstance"] == "kube-proxy-host1"
    assert (patched, patch_kind) == (
        f"{path}/{created['metadata']['name']}",
        "application/merge-patch+json",
    )
    assert patch["series"]["count"] == 2


@pytest.mark.contract("10.1.1")
@pytest.mark.parametrize(
    ("trouble", "methods"),
    [
        pytest.param([503, 500, 429], ["POST"] * 4, id="a server in trouble is tried again"),
        pytest.param([None, None], ["POST"] * 3, id="so is one that hangs up"),
        pytest.param([401], ["POST"] * 2, id="and one that does not know the token any more"),
    ],
)
def test_trouble_that_passes(
    server: ApiServer, sink: ApiSink, trouble: list[int | None], methods: list[str]
) -> None:
    server.trouble = list(trouble)
    recorder = Events(sink, "host1", pause=0.01)
    recorder.record(STARTING, NODE, "")
    assert server.wait_for(len(methods)) == methods
    recorder.close(5)


@pytest.mark.contract("10.1.1")
def test_what_is_refused_is_dropped(server: ApiServer, sink: ApiSink) -> None:
    server.trouble = [403]
    recorder = Events(sink, "host1", pause=0.01)
    recorder.record(STARTING, NODE, "")
    recorder.record(HEALTH_CHECK_PORT_FAILED, WEB, "in use")
    server.wait_for(2)
    recorder.close(5)
    assert [sent["reason"] for *_, sent in server.requests] == [
        "Starting",
        "FailedToStartServiceHealthcheck",
    ]


@pytest.mark.contract("10.1.1")
def test_an_event_that_the_server_forgot_is_created_anew(server: ApiServer, sink: ApiSink) -> None:
    server.trouble = [201, 404]
    recorder = Events(sink, "host1", pause=0.01)
    recorder.record(STARTING, NODE, "")
    recorder.record(STARTING, NODE, "")
    assert server.wait_for(3) == ["POST", "PATCH", "POST"]
    recorder.close(5)
    assert server.requests[2][-1]["series"]["count"] == 2
    assert server.requests[2][-1]["metadata"]["name"] != server.requests[0][-1]["metadata"]["name"]


@pytest.mark.contract("10.1.1")
def test_gives_up_after_a_while(server: ApiServer, sink: ApiSink) -> None:
    server.trouble = [503] * events.ATTEMPTS
    recorder = Events(sink, "host1", pause=0.001)
    recorder.record(STARTING, NODE, "")
    recorder.record(HEALTH_CHECK_PORT_FAILED, WEB, "in use")
    server.wait_for(events.ATTEMPTS + 1)
    recorder.close(5)
    assert server.requests[-1][-1]["reason"] == "FailedToStartServiceHealthcheck"
    assert len(server.requests) == events.ATTEMPTS + 1


def stuck(release: threading.Event) -> Callable[[Write], int]:
    def sink(_: Write) -> int:
        release.wait(20)
        raise RuntimeError("anything at all")

    return sink


@pytest.mark.contract("10.1.1")
def test_a_server_that_hangs_delays_nobody() -> None:
    release = threading.Event()
    recorder = Events(stuck(release), "host1", pause=0.001)
    started = time.monotonic()
    for _ in range(events.WAITING * 2):
        recorder.record(STARTING, NODE, "")
    assert recorder._queue.qsize() == events.WAITING, "what is too much is dropped"
    recorder.close(0.05)
    assert time.monotonic() - started < 5
    release.set()
    recorder._thread.join(10)
    assert not recorder._thread.is_alive()


@pytest.mark.contract("7.1.11", "10.1.1")
def test_close_writes_what_waits(server: ApiServer, sink: ApiSink) -> None:
    recorder = Events(sink, "host1")
    recorder.record(HEALTH_SERVER_FAILED, NODE, "in use")
    recorder.close(5)
    assert [sent["reason"] for *_, sent in server.requests] == ["FailedToStartProxierHealthcheck"]


@pytest.mark.contract("10.1.1")
def test_waiting_repetitions_are_told_in_time(server: ApiServer, sink: ApiSink) -> None:
    """Counted until the clock says that the pause is over.

    The test's clock says so when all have been counted.
    """
    now = NOW
    recorder = Events(sink, "host1", clock=lambda: now)
    for _ in range(10):
        recorder.record(STARTING, NODE, "")
    server.wait_for(2)
    eventually(recorder._queue.empty)
    assert len(server.requests) == 2
    now += events.PACE
    # Wakes the thread, which then looks at the clock
    recorder.record(HEALTH_SERVER_FAILED, NODE, "in use")
    server.wait_for(4)
    recorder.close(5)
    counts = [sent["series"]["count"] for _, _, _, _, sent in server.requests if "series" in sent]
    assert counts == [2, 10]
