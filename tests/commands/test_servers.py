"""The HTTP servers on real sockets.

Paths and answers, what clients cannot do to them, and the ports that come and go with Services.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nftproxy.address import Family
from nftproxy.configuration import config
from nftproxy.errors import UnusableError
from nftproxy.lab import namespace
from nftproxy.model import ObjectName
from nftproxy.monitoring.http import bind
from nftproxy.monitoring.http.pages import About, metrics_server
from nftproxy.monitoring.http.proxyhealth import health_server
from nftproxy.monitoring.http.server import Limits, Server
from nftproxy.monitoring.http.servicehealth import HealthCheckPorts
from nftproxy.monitoring.metrics import Metrics
from nftproxy.monitoring.proxyhealth import ProxyHealth
from nftproxy.monitoring.response import Response
from nftproxy.monitoring.servicehealth import ServiceCheck
from tests.support.objects import node
from tests.support.world import unique_name

V4, V6 = Family.IPv4, Family.IPv6
WEB, API = ObjectName("default", "web"), ObjectName("default", "api")
JSON_HEADERS = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}

Test = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def own_network() -> Iterator[None]:
    """A network namespace with nothing but a loopback, in which the test's sockets are."""
    name = unique_name()
    namespace.create(name)
    try:
        with namespace.enter(name):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
    finally:
        namespace.delete(name)


@contextlib.asynccontextmanager
async def listening(server: Server) -> AsyncIterator[int]:
    """A port of the loopback on which the server answers."""
    sock = bind.listen("127.0.0.1:0")
    port = sock.getsockname()[1]
    listener = await server.listen(sock)
    try:
        yield port
    finally:
        listener.close()
        await settle(lambda: not server.connections)


async def settle(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def ask(
    port: int, path: str, method: str = "GET", host: str = "127.0.0.1", **options: Any
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of one answer, on a connection of its own."""
    url = f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, url, **options) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.text()


def proxy_health() -> tuple[Server, ProxyHealth, Metrics]:
    health, metrics = ProxyHealth(30), Metrics(Family, {})
    return health_server(health, node, metrics), health, metrics


@pytest.mark.contract("7.1.2", "7.1.6", "7.1.7", "7.1.8", "7.1.10", "7.4.12", "7.4.13")
def test_proxy_health_server() -> None:
    async def run() -> None:
        seen = [None, node()]
        health, metrics = ProxyHealth(30), Metrics(Family, {})
        async with listening(health_server(health, lambda: seen[-1], metrics)) as port:
            for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"):
                for path in ("/healthz", "/livez"):
                    status, headers, body = await ask(port, path, method)
                    assert status == 200
                    assert headers.items() >= JSON_HEADERS.items()
                    assert method == "HEAD" or json.loads(body)["healthy"] is True
            for path in ("/", "/healthz/", "/livez/ping", "/metrics", "/healthzz", "/HEALTHZ"):
                assert (await ask(port, path))[0] == 404
            seen.append(None)
            status, _, body = await ask(port, "/healthz?verbose")
            assert (status, json.loads(body)["nodeEligible"]) == (503, False)
            assert (await ask(port, "/livez"))[0] == 200
        values = {
            (sample.name, sample.labels["code"]): sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name.startswith("kubeproxy_proxy_")
        }
        assert values == {
            ("kubeproxy_proxy_healthz_total", "200"): 7,
            ("kubeproxy_proxy_healthz_total", "503"): 1,
            ("kubeproxy_proxy_livez_total", "200"): 8,
        }

    asyncio.run(run())


@pytest.mark.contract("7.1.1")
@pytest.mark.parametrize("address", ["0.0.0.0:10256", "[::]:10256"])
@pytest.mark.usefixtures("own_network")
def test_an_unspecified_address_is_both_families(address: str) -> None:
    with bind.listen(address):
        for host in ("127.0.0.1", "::1", "127.1.2.3"):
            socket.create_connection((host, 10256), 5).close()


@pytest.mark.contract("7.1.1")
@pytest.mark.parametrize(
    ("address", "other"), [("127.0.0.1:10256", "::1"), ("[::1]:10256", "127.0.0.1")]
)
@pytest.mark.usefixtures("own_network")
def test_another_address_is_that_address(address: str, other: str) -> None:
    with bind.listen(address) as listener:
        socket.create_connection(listener.getsockname()[:2], 5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, 10256), 5)


@pytest.mark.contract("7.1.1")
@pytest.mark.usefixtures("own_network")
def test_an_unspecified_address_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = -1, *options: Any, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *options, **more)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with bind.listen("0.0.0.0:10256") as listener:
        assert listener.getsockname() == ("0.0.0.0", 10256)  # noqa: S104


async def nothing(_: Any) -> Response:
    return Response(200, b"ok", {})


@pytest.mark.contract("7.1.11", "7.3.1")
def test_a_taken_address_is_tried_again() -> None:
    async def run() -> None:
        blocker = bind.listen("127.0.0.1:0")
        port = blocker.getsockname()[1]
        naps: list[float] = []

        async def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                blocker.close()

        serving = asyncio.create_task(
            bind.serve(Server(nothing), "the health server", f"127.0.0.1:{port}", sleep=nap)
        )
        await settle(lambda: len(naps) == 3)
        assert (await ask(port, "/"))[0] == 200
        assert naps == [5, 5, 5]
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)

    asyncio.run(run())


@pytest.mark.contract("7.1.11", "7.3.1")
def test_a_taken_address_ends_it_when_told_so() -> None:
    async def run() -> None:
        reasons: list[str] = []
        with bind.listen("127.0.0.1:0") as blocker:
            address = f"127.0.0.1:{blocker.getsockname()[1]}"
            with pytest.raises(
                UnusableError,
                match=f"the metrics server cannot listen on {address}: Address already in use",
            ):
                await bind.serve(
                    Server(nothing),
                    "the metrics server",
                    address,
                    hard_fail=True,
                    failed=reasons.append,
                )
        assert reasons == [f"the metrics server cannot listen on {address}: Address already in use"]

    asyncio.run(run())


def test_a_connection_that_meets_the_end_is_ended() -> None:
    """Accepted in the very turn of the loop in which the listener closes, it must not hang."""

    async def run() -> None:
        with bind.listen("127.0.0.1:0") as open_:
            listener = await Server(nothing).listen(open_)
            with socket.create_connection(open_.getsockname()) as late:
                late.settimeout(5)
                await asyncio.sleep(0)  # now the loop is about to accept
                asyncio.get_running_loop().call_soon(listener.close)
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(late.recv, 1) == b""

    asyncio.run(run())


# ---- health check node ports


async def turns() -> None:
    """Let the loop do what is under way."""
    for _ in range(5):
        await asyncio.sleep(0)


class Failures:
    """The Services whose ports could not be opened."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, service: ObjectName, reason: str) -> None:
        assert "cannot be opened" in reason
        self.names.append(service.name)


@contextlib.asynccontextmanager
async def ports(
    family: Family, *addresses: str, healthy: bool = True
) -> AsyncIterator[tuple[HealthCheckPorts, Failures]]:
    failures = Failures()
    opened = HealthCheckPorts(family, addresses, lambda: healthy, failures)
    try:
        yield opened, failures
    finally:
        # Asyncio leaks a connection whose server is closed while it is being accepted
        await turns()
        opened.close()
        await turns()


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.contract("7.2.1", "7.2.3", "7.2.4", "7.2.5")
@pytest.mark.parametrize("family", Family)
@pytest.mark.usefixtures("own_network")
def test_health_check_port(family: Family) -> None:
    host, other, every = (
        ("127.0.0.1", "::1", "0.0.0.0")  # noqa: S104
        if family is V4
        else ("::1", "127.0.0.1", "::")
    )

    async def run() -> None:
        async with ports(family, every) as (opened, _):
            await opened.update({WEB: ServiceCheck(31000, 2)})
            for method, path in (("GET", "/"), ("POST", "/healthz"), ("DELETE", "/a/b?c=d")):
                status, headers, body = await ask(31000, path, method, host=host)
                assert status == 200
                assert (
                    headers.items()
                    >= {**JSON_HEADERS, "X-Load-Balancing-Endpoint-Weight": "2"}.items()
                )
                expected = {
                    "service": {"namespace": "default", "name": "web"},
                    "localEndpoints": 2,
                    "serviceProxyHealthy": True,
                }
                assert json.loads(body) == expected
            assert not is_open(31000, other), "a socket of one family only"
        assert not is_open(31000, host)

    asyncio.run(run())


@pytest.mark.contract("7.2.1")
@pytest.mark.usefixtures("own_network")
def test_both_families_have_sockets_of_their_own() -> None:
    async def run() -> None:
        async with ports(V4, "0.0.0.0") as (four, _), ports(V6, "::") as (six, failures):  # noqa: S104
            await four.update({WEB: ServiceCheck(31000, 1)})
            await six.update({WEB: ServiceCheck(31000, 0)})
            assert not failures.names
            assert (await ask(31000, "/", host="127.0.0.1"))[0] == 200
            assert (await ask(31000, "/", host="::1"))[0] == 503

    asyncio.run(run())


@pytest.mark.contract("7.2.3")
@pytest.mark.usefixtures("own_network")
def test_health_check_port_of_an_unhealthy_proxy() -> None:
    async def run() -> None:
        async with ports(V4, "127.0.0.1", healthy=False) as (opened, _):
            await opened.update({WEB: ServiceCheck(31000, 2)})
            status, headers, body = await ask(31000, "/")
            assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "2")
            assert json.loads(body)["serviceProxyHealthy"] is False

    asyncio.run(run())


@pytest.mark.contract("7.2.2")
@pytest.mark.usefixtures("own_network")
def test_listed_addresses_only() -> None:
    async def run() -> None:
        async with (
            ports(V4, "127.0.0.1", "127.0.0.2") as (opened, _),
            ports(V4) as (none, failures),
        ):
            await opened.update({WEB: ServiceCheck(31000, 1)})
            await none.update({API: ServiceCheck(31001, 1)})
            assert [is_open(31000, f"127.0.0.{last}") for last in (1, 2, 3)] == [True, True, False]
            assert not is_open(31001)
            assert not failures.names

    asyncio.run(run())


@pytest.mark.contract("7.2.6")
@pytest.mark.usefixtures("own_network")
def test_ports_follow_the_services() -> None:
    async def run() -> None:
        async with ports(V4, "127.0.0.1") as (opened, failures):
            await opened.update({WEB: ServiceCheck(31000, 0), API: ServiceCheck(31001, 3)})
            assert [(await ask(port, "/"))[0] for port in (31000, 31001)] == [503, 200]
            await opened.update({WEB: ServiceCheck(31000, 1)})
            assert [(await ask(port, "/"))[0] for port in (31000, 31001)] == [200, 200]
            await opened.update({WEB: ServiceCheck(31002, 1)})
            assert [is_open(port) for port in (31000, 31001, 31002)] == [False, True, True]
            await opened.update({WEB: ServiceCheck(31001, 1), API: ServiceCheck(31002, 0)})
            assert json.loads((await ask(31001, "/"))[2])["service"]["name"] == "web", (
                "two Services exchange their ports"
            )
            assert json.loads((await ask(31002, "/"))[2])["service"]["name"] == "api"
            await opened.update({API: None})
            assert [is_open(port) for port in (31001, 31002)] == [True, False]
            assert not failures.names

    asyncio.run(run())


@pytest.mark.contract("7.2.6")
@pytest.mark.usefixtures("own_network")
def test_a_closed_port_closes_its_connections() -> None:
    async def run() -> None:
        async with ports(V4, "127.0.0.1") as (opened, _):
            await opened.update({WEB: ServiceCheck(31000, 1)})
            reader, writer = await asyncio.open_connection("127.0.0.1", 31000)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await opened.update({WEB: None})
            assert await until_closed(reader)
            writer.close()

    asyncio.run(run())


@pytest.mark.contract("7.2.7")
@pytest.mark.usefixtures("own_network")
def test_a_port_that_cannot_be_had_on_one_address() -> None:
    async def run() -> None:
        async with ports(V4, "127.0.0.1", "127.0.0.2") as (opened, failures):
            with bind.listen_only(V4, "127.0.0.2", 31000):
                await opened.update({WEB: ServiceCheck(31000, 1), API: ServiceCheck(31001, 1)})
                assert failures.names == ["web"]
                assert not is_open(31000), "none of its sockets stays open"
                assert is_open(31001), "others are not concerned"
                await opened.update({})
                assert failures.names == ["web", "web"], "tried again by the next sync"
            await opened.update({API: ServiceCheck(31001, 2)})
            assert failures.names == ["web", "web"]
            assert [is_open(31000, host) for host in ("127.0.0.1", "127.0.0.2")] == [True, True]

    asyncio.run(run())


@pytest.mark.contract("7.2.7")
@pytest.mark.parametrize(
    ("then", "opened_port"),
    [
        pytest.param(None, 0, id="gone"),
        pytest.param(ServiceCheck(31002, 1), 31002, id="another port"),
    ],
)
@pytest.mark.usefixtures("own_network")
def test_a_missing_port_that_is_not_wanted_any_more(
    then: ServiceCheck | None, opened_port: int
) -> None:
    async def run() -> None:
        async with ports(V4, "127.0.0.1") as (opened, failures):
            with bind.listen_only(V4, "127.0.0.1", 31000):
                await opened.update({WEB: ServiceCheck(31000, 1)})
            await opened.update({WEB: then})
            await opened.update({})
            assert failures.names == ["web"]
            assert not is_open(31000)
            assert not opened_port or is_open(opened_port)

    asyncio.run(run())


# ---- the metrics server


def about(**options: Any) -> About:
    return About(
        **{
            "mode": "nftables",
            "version": "1.2.3",
            "configuration": lambda: config.dump(config.build({})),
            "flags": {"v": "2", "cluster-cidr": "10.0.0.0/8"},
            **options,
        }
    )


@pytest.mark.contract("7.3", "7.3.1")
@pytest.mark.parametrize(
    ("path", "content_type", "expected"),
    [
        pytest.param(
            "/metrics",
            "text/plain; version=0.0.4; charset=utf-8",
            "# TYPE kubeproxy_sync_proxy_rules",
            id="metrics",
        ),
        pytest.param(
            "/metrics/slis",
            "text/plain; version=0.0.4; charset=utf-8",
            "kubernetes_healthcheck{",
            id="slis",
        ),
        pytest.param("/healthz", "text/plain; charset=utf-8", "=ok", id="healthz"),
        pytest.param("/healthz/ping", "text/plain; charset=utf-8", "=ok", id="ping"),
        pytest.param(
            "/healthz?verbose",
            "text/plain; charset=utf-8",
            "=[+]ping ok\nhealthz check passed\n",
            id="verbose",
        ),
        pytest.param("/proxyMode", "text/plain; charset=utf-8", "=nftables", id="proxyMode"),
        pytest.param(
            "/configz", "application/json", '"kind":"KubeProxyConfiguration"', id="configz"
        ),
        pytest.param(
            "/flagz", "text/plain; charset=utf-8", "\ncluster-cidr=10.0.0.0/8\nv=2\n", id="flagz"
        ),
        pytest.param(
            "/statusz",
            "text/plain; charset=utf-8",
            "Binary version: nftproxy 1.2.3\n",
            id="statusz",
        ),
    ],
)
def test_pages(path: str, content_type: str, expected: str) -> None:
    async def run() -> None:
        async with listening(metrics_server(Metrics(Family, {}), about())) as port:
            status, headers, body = await ask(port, path)
        assert (status, headers["Content-Type"]) == (200, content_type)
        assert body == expected[1:] if expected.startswith("=") else expected in body
        if path == "/proxyMode":
            assert headers["X-Content-Type-Options"] == "nosniff"

    asyncio.run(run())


@pytest.mark.contract("7.3.1")
def test_configz_has_the_effective_values() -> None:
    async def run() -> None:
        async with listening(metrics_server(Metrics(Family, {}), about())) as port:
            found = json.loads((await ask(port, "/configz"))[2])
        assert list(found) == ["kubeproxy.config.k8s.io"]
        shown = found["kubeproxy.config.k8s.io"]
        assert (shown["kind"], shown["apiVersion"]) == (
            "KubeProxyConfiguration",
            "kubeproxy.config.k8s.io/v1alpha1",
        )
        assert shown["nodePortAddresses"] == ["primary"]
        assert shown["healthzBindAddress"] == "0.0.0.0:10256"

    asyncio.run(run())


@pytest.mark.contract("7.3.1")
@pytest.mark.parametrize(
    ("options", "path"),
    [
        pytest.param({}, "/", id="root"),
        pytest.param({}, "/livez", id="the other server's path"),
        pytest.param({}, "/metrics/", id="trailing slash"),
        pytest.param({}, "/debug/pprof/", id="profiles unless enabled"),
        pytest.param({}, "/debug/flags/v", id="verbosity unless enabled"),
        pytest.param({"flagz": False}, "/flagz", id="flagz behind its gate"),
        pytest.param({"statusz": False}, "/statusz", id="statusz behind its gate"),
    ],
)
def test_no_page(options: dict[str, Any], path: str) -> None:
    async def run() -> None:
        async with listening(metrics_server(Metrics(Family, {}), about(**options))) as port:
            assert (await ask(port, path))[0] == 404

    asyncio.run(run())


@pytest.mark.contract("7.3.1")
def test_content_negotiation() -> None:
    async def run() -> None:
        async with listening(metrics_server(Metrics(Family, {}), about())) as port:
            accept = {"Accept": "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"}
            _, headers, body = await ask(port, "/metrics", headers=accept)
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert body.endswith("# EOF\n")

    asyncio.run(run())


@pytest.mark.contract("7.3.1")
def test_service_level_indicators() -> None:
    async def run() -> None:
        async with listening(metrics_server(Metrics(Family, {}), about())) as port:
            await ask(port, "/healthz")
            await ask(port, "/healthz/ping")
            body = (await ask(port, "/metrics/slis"))[2]
        assert 'kubernetes_healthcheck{name="ping",type="healthz"} 1.0\n' in body
        assert (
            'kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 2.0\n'
            in body
        )

    asyncio.run(run())


@pytest.mark.contract("7.3.1")
def test_profiling() -> None:
    async def run() -> None:
        levels: list[int] = []
        async with listening(
            metrics_server(Metrics(Family, {}), about(profiling=True, set_verbosity=levels.append))
        ) as port:
            assert "folded stacks" in (await ask(port, "/debug/pprof/"))[2]
            assert "thread MainThread:" in (await ask(port, "/debug/pprof/goroutine"))[2]
            words = Path("/proc/self/cmdline").read_text().rstrip("\0")
            assert (await ask(port, "/debug/pprof/cmdline"))[2] == words
            slow = asyncio.create_task(ask(port, "/debug/pprof/profile?seconds=0.3"))
            await asyncio.sleep(0.1)
            assert (await ask(port, "/debug/pprof/profile?seconds=0.3"))[0] == 503, "one at a time"
            assert (await ask(port, "/healthz"))[0] == 200, "and it does not stop the loop"
            status, _, body = await slow
            assert status == 200
            assert "asyncio.base_events.BaseEventLoop.run_forever" in body
            assert (await ask(port, "/debug/pprof/profile?seconds=many"))[0] == 400
            assert await put(port, "4") == (200, "successfully set klog.logging.verbosity to 4\n")
            assert (await put(port, "loud"))[0] == 400
            assert (await ask(port, "/debug/flags/v"))[0] == 405
        assert levels == [4]

    async def put(port: int, text: str) -> tuple[int, str]:
        status, _, body = await ask(port, "/debug/flags/v", "PUT", data=text)
        return status, body

    asyncio.run(run())


# ---- hostile clients

TIGHT = Limits(request=0.2, answer=0.3, idle=0.2, received=4096, connections=20)


async def until_closed(reader: asyncio.StreamReader) -> bool:
    """Read what comes until the other side closes; whether it does."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            while await reader.read(65536):
                pass
    return True


@contextlib.asynccontextmanager
async def client(
    port: int, first: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def trickle(writer: asyncio.StreamWriter, piece: bytes, pause: float) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)


def test_500_idle_connections() -> None:
    async def run() -> None:
        server, _, _ = proxy_health()
        async with listening(server) as port, contextlib.AsyncExitStack() as stack:
            await asyncio.gather(*(stack.enter_async_context(client(port)) for _ in range(500)))
            for _ in range(5):
                assert (await ask(port, "/livez"))[0] == 200
            assert len(server.connections) <= Limits().connections

    asyncio.run(run())


@pytest.mark.parametrize(
    ("piece", "pause"),
    [
        pytest.param(b"", 1, id="says nothing"),
        pytest.param(b"G", 0.02, id="a method that never ends"),
        pytest.param(b"X-More: and more\r\n", 0.02, id="headers, slowly, for ever"),
        pytest.param(b"X-More: and more\r\n" * 100, 0, id="headers, quickly, for ever"),
        pytest.param(b"a" * 1000, 0, id="one header that never ends"),
    ],
)
def test_a_request_that_never_ends(piece: bytes, pause: float) -> None:
    async def run() -> None:
        server = Server(nothing, TIGHT)
        async with listening(server) as port:
            async with client(
                port, b"GET / HTTP/1.1\r\nHost: a\r\nX: " if piece[:1] in b"Xa" and piece else b""
            ) as (
                reader,
                writer,
            ):
                trickling = asyncio.create_task(trickle(writer, piece, pause))
                assert await until_closed(reader)
                trickling.cancel()
            assert (await ask(port, "/"))[0] == 200

    asyncio.run(run())


def test_a_body_that_never_ends() -> None:
    async def run() -> None:
        async with listening(Server(nothing, TIGHT)) as port:
            request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n"
            async with client(port, request) as (reader, writer):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200"), (
                    "nobody wants the body"
                )
                trickling = asyncio.create_task(trickle(writer, b"x" * 1000, 0))
                assert await until_closed(reader)
                trickling.cancel()

    asyncio.run(run())


def test_a_client_that_does_not_read() -> None:
    asked = asyncio.Event()

    async def large(_: Any) -> Response:
        asked.set()
        return Response(200, b"x" * (32 << 20), {})

    async def run() -> None:
        server = Server(large, TIGHT)
        async with listening(server) as port:
            with socket.create_connection(("127.0.0.1", port)) as deaf:
                deaf.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                # It is busy for as long as its limit only, which a slow machine may sleep through
                await asked.wait()
                await settle(lambda: not server.connections)

    asyncio.run(run())


def test_keep_alive_lasts_a_while_and_ends() -> None:
    async def run() -> None:
        async with listening(Server(nothing, TIGHT)) as port, client(port) as (reader, writer):
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                answered = await reader.readuntil(b"\r\n\r\nok")
                assert answered.startswith(b"HTTP/1.1 200")
                assert b"Connection: close" not in answered
            assert await until_closed(reader)

    asyncio.run(run())


def test_those_who_are_being_answered_are_not_closed_to_make_room() -> None:
    release = asyncio.Event()

    async def waiting(_: Any) -> Response:
        await release.wait()
        return Response(200, b"ok", {})

    async def run() -> None:
        server = Server(waiting, Limits(connections=3))
        async with listening(server) as port, contextlib.AsyncExitStack() as stack:
            busy = [asyncio.create_task(ask(port, "/")) for _ in range(3)]
            await settle(lambda: sum(each.busy for each in server.connections) == 3)
            reader, _ = await stack.enter_async_context(
                client(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            )
            assert await until_closed(reader), "no room, and none to be made"
            release.set()
            assert [status for status, _, _ in await asyncio.gather(*busy)] == [200] * 3

    asyncio.run(run())


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="TLS"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", id="another version"),
        pytest.param(b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", id="negative length"),
        pytest.param(b"GET " + b"/" * 3000 + b"\r\n\r\n", id="no version"),
        pytest.param(b"\0" * 100 + b"\r\n\r\n", id="zeros"),
        pytest.param(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="bad chunk"
        ),
    ],
)
def test_garbage(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listening(Server(nothing, TIGHT)) as port:
            async with client(port, garbage) as (reader, _):
                assert await until_closed(reader)
            assert (await ask(port, "/"))[0] == 200

    asyncio.run(run())
    assert not caplog.records, "strangers do not write our log"


def test_a_page_that_fails() -> None:
    async def broken(_: Any) -> Response:
        raise ValueError

    async def run() -> None:
        async with listening(Server(broken)) as port:
            assert [(await ask(port, "/"))[0] for _ in range(2)] == [500, 500]

    asyncio.run(run())


def test_scrapes_at_the_same_time_are_one() -> None:
    """However many scrape at once, the table is read once."""
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector

    class Slow(Collector):
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.reads = 0
            self._loop = loop

        def describe(self) -> list[GaugeMetricFamily]:
            return [GaugeMetricFamily("slow", "")]

        def collect(self) -> Iterator[GaugeMetricFamily]:
            self.reads += 1
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), self._loop).result()
            yield GaugeMetricFamily("slow", "", self.reads)

    async def run() -> None:
        slow = Slow(asyncio.get_running_loop())
        metrics = Metrics(Family, {})
        metrics.registry.register(slow)
        async with listening(metrics_server(metrics, about())) as port:
            answers = await asyncio.gather(*(ask(port, "/metrics") for _ in range(10)))
        assert all("slow 1.0\n" in body for _, _, body in answers)
        assert slow.reads == 1

    asyncio.run(run())
