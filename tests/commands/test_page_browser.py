"""`nftproxy page` in a real browser."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nftproxy.lab import namespace
from nftproxy.monitoring.http import bind
from nftproxy.monitoring.http.server import Limits, Server
from nftproxy.page.meter import Meter
from nftproxy.page.site import Site
from tests.commands.test_page import VIP, Counting, explained, where
from tests.support.browser import CHROMIUM, Browser, Tab
from tests.unit.test_page import HOSTILE

__all__ = ["where"]  # the fixture

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: apt-get install chromium"),
    pytest.mark.timeout(180),
]


@contextlib.asynccontextmanager
async def served(counting: Counting) -> AsyncIterator[str]:
    """The address of a site."""
    meter = Meter(counting, interval=0.2)
    server = Server(Site(meter, explained, HOSTILE).respond, Limits(connections=64))
    listening = bind.listen("127.0.0.1:0")
    listener = await server.listen(listening)
    reading = asyncio.create_task(meter.run())
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        reading.cancel()
        listener.close()


def look(where: str, folder: Path, test: Callable[[Browser, str], Awaitable[None]]) -> None:
    """Run a test with a browser and a site in one namespace."""

    async def run(counting: Counting) -> None:
        async with served(counting) as url, Browser(where, folder) as browser:
            await test(browser, url)

    with namespace.enter(where), contextlib.closing(Counting()) as counting:
        asyncio.run(run(counting))


def at_home(tab: Tab, url: str) -> bool:
    """Whether all that was requested came from the site, and nothing was blocked."""
    return not tab.complaints and all(each.startswith(url + "/") for each in tab.requests)


@pytest.fixture
def clients(where: str) -> Iterator[None]:
    """Connections to the Service, about 20 a second."""
    over = threading.Event()

    def connect() -> None:
        with namespace.enter(where):
            while not over.wait(0.05):
                with socket.socket() as client, contextlib.suppress(OSError):
                    client.settimeout(1)
                    client.connect((VIP, 80))

    thread = threading.Thread(target=connect)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.usefixtures("clients")
def test_it_loads_and_moves_and_asks_nobody_else(where: str, tmp_path: Path) -> None:
    async def test(browser: Browser, url: str) -> None:
        tab = await browser.open(f"{url}/")
        assert await tab.value("document.querySelector('h1').textContent") == "Services"
        assert await tab.value("document.querySelectorAll('.services tbody tr').length") == 1
        await tab.until("document.querySelector('[data-rate]').textContent > 5")
        await tab.until("document.querySelector('[data-line]').getAttribute('points').length > 30")
        assert at_home(tab, url)

        await tab.go(f"{url}/service/default/web:http")
        await tab.until("document.querySelector('td[data-endpoint]').textContent > 0")
        count = await tab.value("document.querySelector('text[data-endpoint]').textContent")
        await tab.until(
            f"document.querySelector('text[data-endpoint]').textContent > {int(count) + 3}"
        )
        assert at_home(tab, url)

    look(where, tmp_path, test)


def test_it_works_without_javascript(where: str, tmp_path: Path) -> None:
    async def test(browser: Browser, url: str) -> None:
        tab = await browser.open(f"{url}/explain?to=default/web", javascript=False)
        document = await tab.ask("DOM.getDocument", depth=-1)
        html = await tab.ask("DOM.getOuterHTML", nodeId=document["root"]["nodeId"])
        assert "Does not get through" in html["outerHTML"]
        assert not any("/events" in each for each in tab.requests)
        assert at_home(tab, url)

    look(where, tmp_path, test)


def test_it_explains_by_keyboard(where: str, tmp_path: Path) -> None:
    async def test(browser: Browser, url: str) -> None:
        tab = await browser.open(f"{url}/explain")
        for _ in range(20):
            await tab.press("Tab")
            if await tab.value("document.activeElement.name") == "to":
                break
        outline = await tab.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        await tab.type("default/web:http")
        await tab.press("Enter")
        await tab.loaded()
        assert await tab.value("document.querySelector('.answer h3').textContent") == (
            "Does not get through"
        )
        assert await tab.value("document.querySelectorAll('.path .stop').length") == 6
        await tab.value("document.querySelector('summary').focus()")
        await tab.press("Enter")
        assert await tab.value("document.querySelector('details').open")
        assert at_home(tab, url)

    look(where, tmp_path, test)


@pytest.mark.parametrize("path", ["/", "/service/default/web:http", "/explain?to=a/b", "/refusals"])
def test_a_phone_needs_no_scrolling_to_the_side(where: str, tmp_path: Path, path: str) -> None:
    async def test(browser: Browser, url: str) -> None:
        tab = await browser.open(url + path, width=360, height=740)
        assert await tab.value("document.documentElement.scrollWidth") <= 360
        smallest = await tab.value(
            "Math.min(...[...document.querySelectorAll('.path text')]"
            ".filter((each) => each.textContent).map((each) => "
            "each.getBoundingClientRect().height))"
        )
        assert smallest is None or smallest >= 9

    look(where, tmp_path, test)


def test_dark_is_dark(where: str, tmp_path: Path) -> None:
    async def test(browser: Browser, url: str) -> None:
        grounds = []
        for dark in (False, True):
            tab = await browser.open(f"{url}/", dark=dark)
            colour = await tab.value("getComputedStyle(document.body).backgroundColor")
            grounds.append(sum(int(part) for part in colour.strip("rgb()").split(",")))
        light, dark_sum = grounds
        assert light == 3 * 255
        assert dark_sum < 100

    look(where, tmp_path, test)


def test_hostile_names_do_no_harm(where: str, tmp_path: Path) -> None:
    """The node's name, and what somebody made another person open, are markup."""

    async def test(browser: Browser, url: str) -> None:
        tab = await browser.open(f"{url}/")
        for path in ("/?q=", "/explain?to=", "/service/", "/nothing/"):
            await tab.go(f"{url}{path}%3Cscript%3Edocument.title=%27owned%27%3C/script%3E")
            assert await tab.value("document.querySelectorAll('script').length") == 1
            assert "owned" not in (await tab.value("document.title")).partition(" explained")[2]
        assert await tab.value("document.querySelector('.node').textContent") == HOSTILE
        assert at_home(tab, url)

    look(where, tmp_path, test)


def test_the_policy_holds(where: str, tmp_path: Path) -> None:
    """A script that somebody smuggles in does not run."""

    async def test(browser: Browser, url: str) -> None:
        tab = await browser.open(f"{url}/")
        await tab.value(
            "{ const each = document.createElement('script');"
            " each.textContent = 'document.title = \"owned\"'; document.body.append(each); }"
        )
        assert await tab.value("document.title") != "owned"
        assert any("Content Security Policy" in each for each in tab.complaints)

    look(where, tmp_path, test)
