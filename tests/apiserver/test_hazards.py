"""Everything that an API server and the way to it can do to us, one test per hazard.

Each ends (in `mirroring`) by comparing the store and the kernel's elements with those of a fresh
start: nothing lost, nothing resurrected.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nftproxy.model import ObjectName, Service
from nftproxy.sources import reflector as reflector_module
from nftproxy.sources import wire
from nftproxy.sources.apiserver import connect
from nftproxy.sources.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, Resource, own_node
from nftproxy.sources.retry import LONGEST_PAUSE, LONGEST_RETRY_AFTER, STEADY
from nftproxy.table.delta import Delta
from tests.support import protobuf
from tests.support.fake_apiserver import (
    Document,
    Exchange,
    FakeApiServer,
    Hazard,
    Request,
    recorded,
    refused,
)
from tests.support.mirror import Mirror, contents, impatient, kubeconfig, logged, mirroring
from tests.support.pki import server_tls

NAMES = (
    "one",
    "two",
    "three",
    "four",
    "more-0",
    "more-1",
    "more-2",
    "bad",
    "gone",
    "half",
    "last",
    "a",
    "b",
    "c",
)
"""All services there are at any time.

Each has two endpoints from the beginning, one in either zone: the kernel shows who is known.
"""


def service(name: str, cluster_ip: str = "", **spec: Any) -> Document:
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": cluster_ip or f"10.96.1.{NAMES.index(name)}",
            "ports": [{"port": 80}],
            **spec,
        },
    }


def endpoint_slice(name: str) -> Document:
    return {
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [f"10.244.{number}.{NAMES.index(name)}"],
                "hints": {"forZones": [{"name": zone}]},
            }
            for number, zone in enumerate(("before", "after"))
        ],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }


EVERY = (SERVICES, ENDPOINT_SLICES, SERVICE_CIDRS, own_node("node1"))


def document(resource: Resource, zone: str) -> Document:
    """An object of any resource, with something in it that the kernel's elements depend on.

    If that is the zone, the elements of all resources depend on it.
    """
    match resource.name:
        case "services":
            return service("three", externalIPs=[f"192.0.2.{len(zone)}"])
        case "endpointslices":
            return endpoint_slice("one") | {
                "ports": [{"name": "", "port": len(zone), "protocol": "TCP"}]
            }
        case "servicecidrs":
            return {"metadata": {"name": "cidr"}, "spec": {"cidrs": [f"10.9{len(zone)}.0.0/16"]}}
        case _:
            return {"metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": zone}}}


@pytest.fixture(params=["json", "protobuf"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeApiServer]:
    """A server with two services that cannot stream lists.

    Hazards of lists are met by requests of their own.
    """
    with FakeApiServer(streams_lists=False, protobuf=request.param == "protobuf") as server:
        server.begin_with("endpointslices", *map(endpoint_slice, NAMES))
        server.put("services", service("one"))
        server.put("services", service("two"))
        yield server


def watching(mirror: Mirror, times: int = 1, resource: Resource = SERVICES) -> None:
    """Wait until a watch (not a streaming list) was asked for so many times."""
    mirror.until(lambda: len(watches(mirror.server, resource)) >= times)


def watches(server: FakeApiServer, resource: Resource = SERVICES) -> list[Request]:
    """Return the requests for watches."""
    return [each for each in server.asked(resource.name, "watch") if not each.streaming]


def places(server: FakeApiServer) -> list[str]:
    """Return from which versions watches were asked for."""
    return [each.query["resourceVersion"] for each in watches(server)]


# Lists


@pytest.mark.contract("1.1.1", "1.1.2")
def test_pages(server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector_module, "PAGE_SIZE", 2)
    for number in range(3):
        server.put("services", service(f"more-{number}"))
    with mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.changes)
        lists = server.asked("services", "list")
        assert [each.query.get("continue") for each in lists] == [None, "2/105", "4/105"]
        selectors = {
            "labelSelector": "!service.kubernetes.io/service-proxy-name",
            "fieldSelector": "spec.clusterIP!=None",
        }
        assert all(
            selectors.items() <= each.query.items() and each.query["limit"] == "2" for each in lists
        )
        assert mirror.changes == 1, "a list is taken in as a whole"


def test_page_expired(server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector_module, "PAGE_SIZE", 1)

    def first_page_then_compaction(exchange: Exchange) -> None:
        exchange.answer(
            200,
            json.dumps(
                {"metadata": {"resourceVersion": "102", "continue": "1/102"}, "items": []}
            ).encode(),
        )
        server.delete("services", "one")
        server.forget("services")

    server.expect("services", first_page_then_compaction, verb="list")
    with mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("two"))
        assert [each.query.get("continue") for each in server.asked("services", "list")] == [
            None,
            "1/102",
            None,
        ]
        assert not mirror.knows("one")


@pytest.mark.parametrize(
    "body",
    [
        b'{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"na',
        b"<html>gateway</html>",
        b"",
        b"[" * 100_000,
        b'{"items":[]}',
    ],
    ids=["cut", "html", "empty", "deep", "no_version"],
)
def test_list_is_garbage(server: FakeApiServer, body: bytes) -> None:
    server.expect("services", lambda exchange: exchange.answer(200, body), verb="list", times=3)
    with mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("one"))
        assert mirror.time.pauses == pytest.approx([0.8, 1.2, 1.8])


def test_list_breaks_off(server: FakeApiServer) -> None:
    def half(exchange: Exchange) -> None:
        exchange.connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
            b'{"metadata":{"resourceVersion":"1"},"items":[]}'
        )
        exchange.cut()

    server.expect("services", half, verb="list")
    with mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("one"))


def test_list_asks_for_the_present(server: FakeApiServer) -> None:
    """A list from a version (0, above all) may come from a server that lags behind and bring back
    what was deleted.
    """
    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.forget("services")
        server.end_watches("services")
        server.bookmark("services")
        mirror.until(lambda: len(server.asked("services", "list")) == 1)
        assert all("resourceVersion" not in each.query for each in server.asked("services", "list"))


# Streaming lists


def test_streaming_list(server: FakeApiServer) -> None:
    server.streams_lists = True
    with mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("two"))
        server.delete("services", "one")
        mirror.until(lambda: not mirror.knows("one"))
        (asked,) = server.asked("services")
        expected = {
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "true",
        }
        assert expected.items() <= asked.query.items()
        assert "resourceVersion" not in asked.query


@pytest.mark.parametrize(
    "refusal",
    [recorded("watch-invalid.http"), refused(400, reason="BadRequest")],
    ids=["422", "400"],
)
def test_streaming_list_refused(server: FakeApiServer, refusal: Hazard) -> None:
    server.streams_lists = True
    server.expect("services", refusal, verb="watch")
    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        assert mirror.time.pauses == []
        server.forget("services")
        server.expect("services", refused(410), verb="watch")
        server.end_watches("services")
        mirror.until(lambda: mirror.changes == 2)
        assert [each.streaming for each in server.asked("services")].count(True) == 1, (
            "it is remembered"
        )


@pytest.mark.parametrize("ending", ["closes", "falls silent"])
def test_streaming_list_never_complete(server: FakeApiServer, ending: str) -> None:
    server.streams_lists = True

    def incomplete(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(exchange.event("ADDED", service("one")))
        exchange.end() if ending == "closes" else exchange.hold()

    server.expect("services", incomplete, verb="watch")
    with mirroring(server, impatient(SERVICES)) as mirror:
        mirror.until(lambda: mirror.changes)
        assert mirror.knows("two"), "half a list is no list"
        assert len(server.asked("services", "list")) == 1


def test_streaming_list_changes_while_it_lasts(server: FakeApiServer) -> None:
    def busy(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(
            exchange.event("ADDED", service("one")) + exchange.event("ADDED", service("gone"))
        )
        exchange.chunk(
            exchange.event("MODIFIED", service("one", "10.96.9.9"))
            + exchange.event("DELETED", service("gone"))
        )
        exchange.chunk(
            exchange.initial_events_end(server.version)
            + exchange.event("MODIFIED", server.collections["services"].objects["default", "one"])
        )
        exchange.chunk(
            exchange.event("ADDED", server.collections["services"].objects["default", "two"])
        )
        exchange.hold()

    server.streams_lists = True
    server.expect("services", busy, verb="watch")
    with mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("two"))
        assert not mirror.knows("gone")


# Watches that end


def test_watch_ends_in_good_order(server: FakeApiServer) -> None:
    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.put("services", service("three"))
        mirror.until(lambda: mirror.knows("three"))
        mirror.time.now += 20
        server.end_watches("services")
        watching(mirror, 2)
        assert mirror.time.pauses == [], "nor does it count as trouble"
        assert len(server.asked("services", "list")) == 1


def test_server_closes_at_once_no_spin(server: FakeApiServer) -> None:
    def close(exchange: Exchange) -> None:
        exchange.begin()
        exchange.end()

    server.expect("services", close, verb="watch", times=1000)
    server.streams_lists = True
    with logged() as lines, mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: len(mirror.time.pauses) >= 20)
        assert mirror.time.pauses[:4] == pytest.approx([0.8, 1.2, 1.8, 2.7])
        assert mirror.time.pauses[10] == LONGEST_PAUSE
        assert len(server.asked("services")) <= len(mirror.time.pauses) + 2, (
            "one request per pause, and the list"
        )
        assert len([line for line in lines if line.startswith("WARNING")]) <= 2
        server.behave()
        server.put("services", service("three"))
        mirror.until(lambda: mirror.knows("three"))


def test_mid_line(server: FakeApiServer) -> None:
    def half_a_line(exchange: Exchange) -> None:
        exchange.begin()
        for line in exchange.events():
            exchange.chunk(line[: len(line) // 2])
            exchange.cut()
            return

    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect("services", half_a_line, verb="watch")
        server.end_watches("services")
        watching(mirror, 2)
        server.put("services", service("three"))
        mirror.until(lambda: mirror.knows("three"))
        assert places(server) == ["102"] * 3
        assert len(server.asked("services", "list")) == 1


def test_line_in_pieces(server: FakeApiServer) -> None:
    def piecemeal(exchange: Exchange) -> None:
        exchange.begin()
        for line in exchange.events():
            for byte in line:
                exchange.chunk(bytes([byte]))
        exchange.end()

    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect("services", piecemeal, verb="watch")
        server.end_watches("services")
        watching(mirror, 2)
        server.put("services", service("three", externalIPs=["192.0.2.1"]))
        mirror.until(lambda: mirror.knows("three"))


@pytest.mark.parametrize(
    "garbage",
    [b"hello\n", b'{"type":"SURPRISE","object":{}}\n', b"[" * 100_000 + b"\n"],
    ids=["text", "type", "deep"],
)
def test_stream_is_garbage(server: FakeApiServer, garbage: bytes) -> None:
    def talk(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(
            exchange.event("DELETED", service("one"))
            + garbage
            + exchange.event("DELETED", service("two"))
        )
        exchange.hold()

    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect("services", talk, verb="watch")
        server.end_watches("services")
        mirror.until(lambda: len(server.asked("services", "list")) == 2)
        mirror.until(lambda: mirror.knows("one"))


@pytest.mark.parametrize(
    ("garbage", "said"),
    [
        (b"\xff\xff\xff\xff", "more than 16 MiB"),
        (protobuf.framed(b"\xff\xff"), "no watch event"),
        (protobuf.event("ADDED", "Node", {"metadata": {"name": "one"}}), "has to be"),
        (protobuf.framed(protobuf.encode("WatchEvent", {"type": "ADDED"})), "begins with"),
    ],
    ids=["length", "event", "kind", "magic"],
)
def test_stream_is_garbage_of_protobuf(garbage: bytes, said: str) -> None:
    """One line in the log, and a list; what came before the garbage counts until then."""

    def talk(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(exchange.event("DELETED", service("one")) + garbage)
        exchange.hold()

    with FakeApiServer(streams_lists=False, protobuf=True) as server, logged() as lines:
        server.begin_with("endpointslices", *map(endpoint_slice, NAMES))
        server.put("services", service("one"))
        with mirroring(server, SERVICES) as mirror:
            watching(mirror)
            server.expect("services", talk, verb="watch")
            server.end_watches("services")
            mirror.until(lambda: len(server.asked("services", "list")) == 2)
            mirror.until(lambda: mirror.knows("one"))
        assert len([line for line in lines if said in line]) == 1


def test_line_without_end(server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LONGEST_MESSAGE", 100_000)

    def endless(exchange: Exchange) -> None:
        exchange.begin()
        while True:
            exchange.chunk(b"x" * 10_000)

    with logged() as lines, mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect("services", endless, verb="watch")
        server.end_watches("services")
        mirror.until(lambda: len(server.asked("services", "list")) == 2)
        assert any("of more than" in line for line in lines)


# Silence


def test_silence(server: FakeApiServer) -> None:
    """A stream that says nothing any more, while the world goes on."""

    def say_nothing(exchange: Exchange) -> None:
        exchange.begin()
        server.put("services", service("three"))
        server.delete("services", "one")
        exchange.hold()

    with mirroring(server, impatient(SERVICES)) as mirror:
        watching(mirror)
        server.expect("services", say_nothing, verb="watch")
        mirror.until(lambda: mirror.knows("three") and not mirror.knows("one"))
        assert len(server.asked("services", "list")) == 1, "resumed, not listed again"


@pytest.mark.parametrize("resource", EVERY, ids=lambda each: each.name)
def test_silence_of_any_stream(server: FakeApiServer, resource: Resource) -> None:
    """All are noticed within 30 s, and cost a request each.

    What matters less must not be known later.
    """
    assert resource.silence < 30

    def say_nothing(exchange: Exchange) -> None:
        exchange.begin()
        server.put(resource.name, document(resource, "after"))
        exchange.hold()

    server.put(resource.name, document(resource, "before"))
    with mirroring(server, impatient(resource)) as mirror:
        watching(mirror, resource=resource)
        server.expect(resource.name, say_nothing, verb="watch")
        mirror.until(lambda: mirror.changes == 2)
        assert len(server.asked(resource.name, "list")) == 1


def test_an_overdue_end(server: FakeApiServer) -> None:
    """A server that does not even end a watch as asked is complained of then, once, and not only
    when it fails the next time.
    """
    with logged() as lines, mirroring(server, impatient(SERVICES, 0.5)) as mirror:
        for number in range(1, 4):
            mirror.until(lambda begun=2 * number - 1: mirror.time.looks >= begun)  # type: ignore[misc]
            assert watches(server)[-1].query["timeoutSeconds"] == "0"
            mirror.time.now += STEADY
        mirror.until(lambda: mirror.time.looks > 2 * 3)
        assert len(lines) == 1
        assert "services: the API server is silent" in lines[0]


@pytest.mark.parametrize("resource", EVERY, ids=lambda each: each.name)
def test_quiet_hour(server: FakeApiServer, resource: Resource) -> None:
    """A stream with nothing to say is ended by the server in time, and goes on over the same
    connection, without a list or a pause.
    """
    with mirroring(server, resource) as mirror:
        for number in range(1, 181):
            mirror.until(lambda begun=2 * number - 1: mirror.time.looks == begun)  # type: ignore[misc]
            seconds = int(watches(server, resource)[-1].query["timeoutSeconds"])
            assert seconds < resource.silence, "else it would pass for dead"
            mirror.time.now += seconds
            if not number % 3:
                server.bookmark(resource.name)
            server.end_watches(resource.name)
        assert len(server.asked(resource.name, "list")) == 1
        assert mirror.time.pauses == []
        assert len(server._threads) == 2, (
            "who accepts connections, and who serves the one there was"
        )


def test_freeze(server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts connections and never answers."""
    monkeypatch.setattr(reflector_module, "LIST_SILENCE", 0.1)
    server.expect("services", Exchange.hold, times=4)
    with mirroring(server, impatient(SERVICES)) as mirror:
        mirror.until(lambda: mirror.knows("one"))
        assert len(mirror.time.pauses) >= 4


def test_bookmark(server: FakeApiServer) -> None:
    """What a bookmark says is where the next watch goes on, so that a quiet resource is not listed
    again.
    """
    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.bookmark("services")
        server.end_watches("services")
        watching(mirror, 2)
        assert places(server) == ["102", "103"]
        server.forget("services")
        server.end_watches("services")
        watching(mirror, 3)
        assert len(server.asked("services", "list")) == 1


# Histories that are forgotten


def test_gone_http(server: FakeApiServer) -> None:
    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect("services", refused(503), verb="watch", times=1_000_000)
        server.end_watches("services")
        mirror.until(lambda: len(mirror.time.pauses) >= 4)
        server.delete("services", "one")
        server.put("services", service("three"))
        server.forget("services")
        server.behave()
        mirror.until(lambda: mirror.knows("three"))
        assert not mirror.knows("one")


def test_gone_event(server: FakeApiServer) -> None:
    gone = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": "too old resource version: 1 (205)",
        "reason": "Expired",
        "code": 410,
    }

    def expired(exchange: Exchange) -> None:
        server.delete("services", "one")
        server.put("services", service("three"))
        exchange.begin()
        exchange.chunk(exchange.event("ERROR", gone))
        exchange.end()

    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect("services", expired, verb="watch")
        server.end_watches("services")
        mirror.until(lambda: mirror.knows("three"))
        assert not mirror.knows("one")
        assert len(server.asked("services", "list")) == 2


def test_gone_again_and_again_no_spin(server: FakeApiServer) -> None:
    server.expect("services", refused(410), verb="watch", times=1000)
    server.streams_lists = True
    with mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: len(mirror.time.pauses) >= 20)
        assert mirror.time.pauses[19] == LONGEST_PAUSE
        server.behave()
        mirror.until(lambda: mirror.knows("one"))


def test_error_event_asks_to_wait(server: FakeApiServer) -> None:
    def later(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(
            exchange.event(
                "ERROR",
                {
                    "metadata": {},
                    "code": 429,
                    "message": "slow",
                    "details": {"retryAfterSeconds": 7},
                },
            )
        )
        exchange.end()

    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect("services", later, verb="watch")
        server.end_watches("services")
        mirror.until(lambda: len(server.asked("services", "list")) == 2)
        assert mirror.time.pauses[-1] == pytest.approx(7 * 1.2)


# Refusals


@pytest.mark.parametrize("verb", ["list", "watch"])
@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("asked", "given"), [("9", 9.0), ("86400", LONGEST_RETRY_AFTER), ("soon", 0.8 / 1.2)]
)
def test_retry_after(server: FakeApiServer, verb: str, code: int, asked: str, given: float) -> None:
    server.streams_lists = verb == "watch"
    server.expect("services", refused(code, Retry_After=asked), verb=verb)
    with mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("one"))
        assert mirror.time.pauses == [pytest.approx(given * 1.2)]


@pytest.mark.parametrize("code", [500, 502, 504])
def test_server_errors(server: FakeApiServer, code: int) -> None:
    with logged() as lines, mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect(
            "services", lambda exchange: exchange.answer(code, b"<html>"), verb="watch", times=5
        )
        server.end_watches("services")
        server.put("services", service("three"))
        mirror.until(lambda: mirror.knows("three"))
        assert len(server.asked("services", "list")) == 1, "the place in the history is kept"
        assert len([line for line in lines if line.startswith("WARNING")]) == 1


def test_forbidden_and_allowed_again(server: FakeApiServer) -> None:
    with logged() as lines, mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.expect("services", recorded("list-forbidden.http"), verb="watch", times=50)
        server.end_watches("services")
        server.delete("services", "one")
        mirror.until(lambda: len(mirror.time.pauses) >= 50)
        assert max(mirror.time.pauses) == LONGEST_PAUSE
        assert mirror.knows("two")
        mirror.until(lambda: not mirror.knows("one"))
        (warning,) = [line for line in lines if line.startswith("WARNING")]
        assert "services" in warning
        assert "system:anonymous" in warning


@pytest.mark.contract("10.2.1")
@pytest.mark.parametrize(
    "refusal", [recorded("list-forbidden.http"), refused(404)], ids=["403", "404"]
)
def test_forbidden_servicecidrs(server: FakeApiServer, refusal: Hazard) -> None:
    server.load("servicecidrs", "servicecidrs-list.json")
    server.expect("servicecidrs", refusal, times=20)
    with logged() as lines, mirroring(server, SERVICE_CIDRS) as mirror:
        mirror.until(lambda: mirror.changes)
        assert max(mirror.time.pauses) == 300
        assert sum(mirror.time.pauses[:4]) < 15, (
            "an API server that starts may deny for a moment what is allowed"
        )
        assert len([line for line in lines if line.startswith("WARNING")]) == 1


# Credentials


@pytest.mark.contract("8.5.1")
def test_unauthorized_rotated_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(FakeApiServer(streams_lists=False, tls=server_tls(tmp_path)))
        server.token = "first"  # noqa: S105
        for name in ("one", "two"):
            server.put("services", service(name))
        connection = connect(kubeconfig(tmp_path, server.url, tokenFile=str(token)), "")
        lines = stack.enter_context(logged())
        mirror = stack.enter_context(mirroring(server, SERVICES, connection))
        watching(mirror)
        server.token = "second"  # noqa: S105
        server.end_watches("services")
        mirror.until(lambda: len(mirror.time.pauses) >= 3)
        token.write_text("second\n")
        server.put("services", service("three"))
        mirror.until(lambda: mirror.knows("three"))
        server.token = None
    assert len([line for line in lines if "401 Unauthorized" in line]) == 1


def test_an_authority_that_is_put_right(tmp_path: Path) -> None:
    clock = iter(range(0, 10**6, 61))  # each request reads the file again
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(FakeApiServer(streams_lists=False, tls=server_tls(tmp_path)))
        server.put("services", service("one"))
        path = Path(kubeconfig(tmp_path, server.url))
        document = json.loads(path.read_text())
        document["clusters"][0]["cluster"] = {"server": server.url}
        path.write_text(json.dumps(document))
        connection = connect(str(path), "", clock=lambda: next(clock))
        lines = stack.enter_context(logged())
        mirror = stack.enter_context(mirroring(server, SERVICES, connection))
        mirror.until(lambda: len(mirror.time.pauses) >= 3)
        document["clusters"][0]["cluster"]["certificate-authority"] = "ca.crt"
        (tmp_path / "new").write_text(json.dumps(document))
        (tmp_path / "new").replace(path)
        mirror.until(lambda: mirror.knows("one"))
    (line,) = (line for line in lines if line.startswith("WARNING"))
    assert "the system's store of certificates has to vouch for the API server's" in line


# Outages


def test_refused_connections(server: FakeApiServer) -> None:
    with logged() as lines, mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.delete("services", "one")
        mirror.until(lambda: mirror.changes == 2)
        before = mirror.synced.left()
        server.shut()
        mirror.until(lambda: len(mirror.time.pauses) >= 200)
        assert sum(mirror.time.pauses) > 3600
        assert mirror.synced.left() == before, (
            "store and kernel stay as they are, for as long as it takes"
        )
        server.put("services", service("three"))
        server.listen()
        mirror.until(lambda: mirror.knows("three"))
        assert len([line for line in lines if line.startswith("WARNING")]) == 2, (
            "the watch breaks, connections are refused"
        )
        assert len([line for line in lines if line.startswith("INFO")]) == 1, (
            "and then not any more"
        )


def test_deleted_while_disconnected(server: FakeApiServer) -> None:
    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.shut()
        server.delete("services", "one")
        server.put("services", service("two", "10.96.0.99"))
        server.forget("services")
        server.listen()
        mirror.until(lambda: not mirror.knows("one"))
        mirror.until(
            lambda: (
                mirror.store._services[ObjectName("default", "two")].spec.cluster_ip == "10.96.0.99"
            )
        )


def test_resurrected(server: FakeApiServer) -> None:
    """After a deletion was seen, no later watch begins before it, whatever happens."""
    with mirroring(server, SERVICES) as mirror:
        watching(mirror)
        server.put("services", service("one", "10.96.0.77"))
        server.delete("services", "one")
        mirror.until(lambda: not mirror.knows("one"))
        seen = []
        original = mirror.store.put
        mirror.store.put = lambda item: seen.append(item) or original(item)  # type: ignore[method-assign, func-returns-value]
        for _ in range(3):
            server.shut()
            server.listen()
        server.put("services", service("three"))
        mirror.until(lambda: mirror.knows("three"))
        assert [each.metadata.name for each in seen if isinstance(each, Service)] == ["three"]


# Objects


@pytest.mark.parametrize("streams", [False, True], ids=["list", "streaming_list"])
def test_undecodable_object_in_a_list(server: FakeApiServer, streams: bool) -> None:
    server.streams_lists = streams
    server.put("services", service("bad", ports=[{"port": 123456}]))
    with logged() as lines, mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("one"))
        assert not mirror.knows("bad")
        (line,) = [line for line in lines if "default/bad" in line]
        assert "$.spec.ports[0].port" in line or "$.object.spec.ports[0].port" in line
        server.put("services", service("bad"))
        mirror.until(lambda: mirror.knows("bad"))


@pytest.mark.parametrize("streams", [False, True], ids=["list", "streaming_list"])
def test_undecodable_object_replaces_a_good_one(server: FakeApiServer, streams: bool) -> None:
    server.streams_lists = streams
    with logged() as lines, mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("one"))
        good = contents(mirror.store)[ObjectName("default", "one")]
        server.put(
            "services",
            {"metadata": {"name": "one", "namespace": "default"}, "spec": {"type": "Magic"}},
        )
        server.put("services", service("three"))
        mirror.until(lambda: mirror.knows("three"))
        assert contents(mirror.store)[ObjectName("default", "one")] == good, (
            "the last good version stays"
        )
        server.forget("services")
        server.shut()
        server.put("services", service("four"))
        server.forget("services")
        server.listen()
        mirror.until(lambda: mirror.knows("four"))
        assert contents(mirror.store)[ObjectName("default", "one")] == good, (
            "also after it was listed again"
        )
        assert len([line for line in lines if "default/one" in line]) == 2, (
            "one line each time it was skipped"
        )
        server.delete("services", "one")
        mirror.until(lambda: not mirror.knows("one"))


def test_undecodable_object_without_a_name(server: FakeApiServer) -> None:
    server.expect(
        "services",
        lambda exchange: exchange.answer(
            200,
            b'{"metadata":{"resourceVersion":"102"},"items":[7,{"metadata":{"name":"\xff"}},'
            + json.dumps(service("one")).encode()
            + b"]}",
        ),
        verb="list",
    )
    with logged() as lines, mirroring(server, SERVICES) as mirror:
        mirror.until(lambda: mirror.knows("one"))
        assert len([line for line in lines if "an object without a name" in line]) == 2
        server.end_watches("services")
        server.forget("services")
        server.bookmark("services")
        server.expect("services", refused(410), verb="watch")
        mirror.until(lambda: mirror.knows("two"))


# Recordings of a real server


@pytest.mark.contract("1.1.5")
@pytest.mark.parametrize("streams", [False, True], ids=["list", "streaming_list"])
@pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])
@pytest.mark.parametrize("resource", [SERVICES, ENDPOINT_SLICES], ids=lambda each: each.name)
def test_recorded_watch(resource: Any, streams: bool, protobuf: bool) -> None:
    with FakeApiServer(streams_lists=streams, protobuf=protobuf) as server:
        for each in EVERY:
            server.load(each.name, f"{each.name}-list.json")
        with mirroring(server, resource) as mirror:
            mirror.until(lambda: mirror.changes)
            before = contents(mirror.store)
            server.replay(resource.name, f"{resource.name}-watch.jsonl")
            any_of_them = next(iter(server.collections[resource.name].objects.values()))
            server.put(
                resource.name,
                any_of_them | {"metadata": any_of_them["metadata"] | {"name": "last"}},
            )
            mirror.until(lambda: mirror.knows("last"))
            changed = {
                key for key, item in contents(mirror.store).items() if before.get(key) != item
            }
            assert len(changed) + len(before.keys() - contents(mirror.store).keys()) > 1, (
                "the recording was played"
            )


# The comparison itself


@pytest.mark.parametrize("where", ["services4", "endpoints4-tcp"])
def test_a_kernel_that_differs_is_noticed(server: FakeApiServer, where: str) -> None:
    def lose_elements() -> None:
        with mirroring(server, SERVICES) as mirror:
            mirror.until(lambda: mirror.changes)
            kernel, lost = mirror.synced.table.kernel, Delta()
            for key in kernel.elements(where):
                lost.remove(where, key)
            kernel.commit(lost)

    with pytest.raises(AssertionError, match=where):
        lose_elements()


# Any of it, in any order

CHANGES = st.tuples(
    st.sampled_from(["put", "delete", "break"]), st.sampled_from(["a", "b", "c"]), st.integers(1, 3)
)
TROUBLES = st.sampled_from(["cut", "end", "forget", "503", "mid-line", "bookmark"])


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    story=st.lists(st.one_of(CHANGES, TROUBLES), max_size=12),
    streams=st.booleans(),
    protobuf=st.booleans(),
)
def test_any_story_ends_like_a_fresh_start(
    story: list[tuple[str, str, int] | str], streams: bool, protobuf: bool
) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(FakeApiServer(streams_lists=streams, protobuf=protobuf))
        server.begin_with("endpointslices", *map(endpoint_slice, NAMES))
        mirror = stack.enter_context(mirroring(server, SERVICES))
        mirror.until(lambda: mirror.changes)
        for each in story:
            known = server.collections["services"].objects
            match each:
                case ("put", str(name), int(number)):
                    server.put("services", service(name, f"10.96.0.{number}"))
                case ("delete", str(name), _) if ("default", name) in known:
                    server.delete("services", name)
                case "cut":
                    server.shut()
                    server.listen()
                case "end":
                    server.end_watches("services")
                case "forget":
                    server.forget("services")
                    server.end_watches("services")
                case "503":
                    server.expect("services", refused(503))
                    server.end_watches("services")
                case "mid-line":
                    server.expect("services", _half_a_list, verb="watch")
                    server.end_watches("services")
                case "bookmark":
                    server.bookmark("services")
        server.put("services", service("last"))
        mirror.until(lambda: mirror.knows("last"))


def _half_a_list(exchange: Exchange) -> None:
    exchange.begin()
    exchange.chunk(exchange.event("ADDED", service("half"))[:-20])
    exchange.cut()
