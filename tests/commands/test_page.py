"""`nftproxy page` over HTTP: what it answers, to whom, and what it costs the table."""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from nftproxy.address import Family
from nftproxy.lab import namespace
from nftproxy.monitoring.http import bind
from nftproxy.monitoring.http.server import Limits, Server
from nftproxy.page.meter import Meter
from nftproxy.page.site import Site
from nftproxy.page.watch import PageReading, TableWatch
from nftproxy.path.model import Path
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.process import NFTPROXY, nftproxy
from tests.support.tables import table_in
from tests.support.world import unique_name
from tests.unit.test_page import PATH

VIP = "10.96.0.10"
POD = "10.244.1.2"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@pytest.fixture
def where() -> Iterator[str]:
    """A namespace whose table sends the ClusterIP to an address that is its own."""
    name = unique_name()
    namespace.create(name)
    try:
        for command in (
            "link set lo up",
            f"addr add {POD}/32 dev lo",
            f"route add {VIP}/32 dev lo src {POD}",
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        objects = (service(), endpoint_slice(endpoints=[endpoint(POD, "node1")]))
        with table_in(name, *objects) as table:
            table.sync(Family.IPv4, [])
        yield name
    finally:
        namespace.delete(name)


class Counting(TableWatch):
    """Reads the table, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = 0

    def read(self) -> PageReading | None:
        self.readings += 1
        return super().read()


def explained(target: str, source: str, protocol: str) -> Path:
    del target, source, protocol
    return PATH


class Pages:
    """A site that is served, and a client."""

    def __init__(self, port: int, session: aiohttp.ClientSession, counting: Counting) -> None:
        self.port = port
        self.counting = counting
        self._session = session

    async def get(
        self, path: str, method: str = "GET", host: str = ""
    ) -> tuple[int, str, dict[str, str]]:
        """Return code, body and headers."""
        headers = {"Host": host} if host else {}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self._session.request(method, url, headers=headers) as answer:
            return answer.status, await answer.text(), dict(answer.headers)

    @contextlib.asynccontextmanager
    async def events(self, query: str = "") -> AsyncIterator[AsyncIterator[list[Any]]]:
        """The data of events, as they come."""
        async with self._session.get(f"http://127.0.0.1:{self.port}/events{query}") as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"

            async def data() -> AsyncIterator[list[Any]]:
                found: list[Any] = []
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        found.append(json.loads(line.removeprefix(b"data: ")))
                    elif found:
                        yield found
                        found = []

            yield data()


def serving(where: str, test: Callable[[Pages], Awaitable[None]], interval: float = 0.05) -> None:
    """Serve a site in a namespace and run a test against it."""

    async def run(counting: Counting) -> None:
        meter = Meter(counting, interval=interval)
        server = Server(Site(meter, explained, "node1").respond, Limits(connections=64))
        listening = bind.listen("127.0.0.1:0")
        listener = await server.listen(listening)
        reading = asyncio.create_task(meter.run())
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(connector=connector) as session:
                await test(Pages(listening.getsockname()[1], session, counting))
        finally:
            reading.cancel()
            listener.close()

    with namespace.enter(where), contextlib.closing(Counting()) as counting:
        asyncio.run(run(counting))


def connect() -> None:
    """Connect to the ClusterIP; nobody listens, and the connection counts all the same."""
    with socket.socket() as client:
        client.settimeout(5)
        with contextlib.suppress(ConnectionRefusedError):
            client.connect((VIP, 80))


def test_every_page_forbids_what_does_not_come_from_here(where: str) -> None:
    async def test(pages: Pages) -> None:
        for path, code in (
            ("/", 200),
            ("/?q=web", 200),
            ("/service/default/web:http", 200),
            ("/explain", 200),
            ("/explain?to=default/web", 200),
            ("/refusals", 200),
            ("/page.css", 200),
            ("/page.js", 200),
            ("/icon.svg", 200),
            ("/service/default/none", 404),
            ("/etc/passwd", 404),
            ("/static/../site.py", 404),
        ):
            status, body, headers = await pages.get(path)
            assert (path, status) == (path, code)
            assert headers.items() >= HEADERS.items()
            assert not re.search(
                r"\s(style|on\w+)\s*=|<script>|<style|https?://(?!www.w3.org)", body
            )

    serving(where, test)


def test_a_service_its_endpoints_and_its_path(where: str) -> None:
    async def test(pages: Pages) -> None:
        _, services, _ = await pages.get("/")
        assert '<a href="/service/default/web:http">default/web:http</a>' in services
        assert "10.96.0.10:80/tcp" in services
        _, page, _ = await pages.get("/service/default/web:http")
        assert "10.244.1.2:8080" in page
        assert (
            'aria-label="A connection from 10.244.1.9 to default/web does not get through"' in page
        )

    serving(where, test)


def test_nothing_can_be_changed(where: str) -> None:
    async def test(pages: Pages) -> None:
        for method in ("POST", "PUT", "DELETE"):
            assert (await pages.get("/", method))[0] == 405

    serving(where, test)


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:10260", 200),
        ("evil.example", 421),
        ("localhost.evil.example:10260", 421),
        ("[evil", 421),
    ],
)
def test_only_who_names_it_by_address_is_answered(where: str, host: str, code: int) -> None:
    async def test(pages: Pages) -> None:
        assert (await pages.get("/", host=host))[0] == code

    serving(where, test)


def test_events_say_what_moved(where: str) -> None:
    async def test(pages: Pages) -> None:
        async with pages.events("?service=default/web:http") as events:
            await anext(events)
            for _ in range(3):
                connect()
            async for changes, counts in events:
                assert changes["trouble"] == ""
                if counts == {"10.244.1.2:8080": 3}:
                    break
            async for changes, _ in events:
                if changes["services"] == {}:  # idle again
                    return

    serving(where, test)


def test_twenty_who_look_cost_as_much_as_one(where: str) -> None:
    async def test(pages: Pages) -> None:
        async with contextlib.AsyncExitStack() as stack:
            all_events = [await stack.enter_async_context(pages.events()) for _ in range(20)]
            for events in all_events:
                await anext(events)
            before = pages.counting.readings
            for _ in range(5):
                await asyncio.gather(*(anext(events) for events in all_events))
            assert pages.counting.readings - before <= 6

    serving(where, test)


def test_the_table_is_read_whole_only_where_it_has_changed(where: str) -> None:
    """Else the counters that moved are read; and those of a Service when somebody looks at it."""

    async def test(pages: Pages) -> None:
        async with pages.events("?service=default/web:http") as events:
            for _ in range(3):
                await anext(events)
            connect()
            async for event in events:
                if event[1] == {f"{POD}:8080": 1}:
                    break
            assert list(event[0]["services"]) == ["default/web:http"]
            _, page, _ = await pages.get("/service/default/web:http")
            assert f'data-endpoint="{POD}:8080">1</td>' in page
            assert pages.counting.whole == 1
            new = '10.96.0.99 . tcp . 80 comment "default/new:http" : drop'
            command = f"add element inet nftproxy services4 {{ {new} }}"
            subprocess.run(["nft", command], check=True)
            async for _ in events:
                if "default/new:http" in (await pages.get("/"))[1]:
                    break
            assert pages.counting.whole == 2

    serving(where, test)


def test_a_table_that_changes_all_the_time_is_seldom_read_whole(where: str) -> None:
    now = 0.0
    with namespace.enter(where), contextlib.closing(TableWatch(lambda: now)) as watch:
        watch.read()
        assert watch.whole == 1
        for second in range(1, 5):
            now = float(second)
            watch._due = 3.5
            subprocess.run(["nft", f"add table inet other{second}"], check=True)
            watch.read()
        assert watch.whole == 2


def test_nobody_looks_nothing_is_read(where: str) -> None:
    async def test(counting: Counting) -> None:
        now = [0.0]
        meter = Meter(counting, interval=0.001, clock=lambda: now[0])
        reading = asyncio.create_task(meter.run())
        await meter.fresh()
        now[0] += 60
        while not meter.is_resting:
            await asyncio.sleep(0.001)
        before = counting.readings
        await asyncio.sleep(0.05)
        assert counting.readings == before
        await meter.fresh()
        assert counting.readings > before
        reading.cancel()

    with namespace.enter(where), contextlib.closing(Counting()) as counting:
        asyncio.run(test(counting))


def test_a_table_that_is_deleted_and_comes_back(where: str) -> None:
    async def test(pages: Pages) -> None:
        async with pages.events() as events:
            await anext(events)
            subprocess.run(["nft", "delete", "table", "inet", "nftproxy"], check=True)
            async for changes, _ in events:
                if changes["trouble"]:
                    break
            assert changes["trouble"] == "There is no table inet nftproxy on this node."
        _, page, _ = await pages.get("/")
        assert "There is no table inet nftproxy on this node." in page

    serving(where, test)


def test_the_command_serves_until_it_is_stopped(where: str) -> None:
    with (
        namespace.enter(where),
        subprocess.Popen(
            [*NFTPROXY, "page", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.match(r"http://127\.0\.0\.1:(\d+)   Ctrl-C ends it\n", line)
            assert found

            async def ask() -> str:
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"http://127.0.0.1:{found[1]}/service/default/web:http") as answer,
                ):
                    return await answer.text()

            page = asyncio.run(ask())
            assert "Gets through" in page or "Does not get through" in page
        finally:
            process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "address", ["", "here", "localhost:80", "127.0.0.1", "127.0.0.1:x", "1:2:3"]
)
def test_an_address_that_is_none(address: str) -> None:
    done = nftproxy("page", "--listen", address)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not IP:PORT" in done.stderr
    assert "hint: for example 127.0.0.1:10260" in done.stderr


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = nftproxy("page", "--listen", address)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"error: the page cannot be served on {address}: Address already in use"
    )
