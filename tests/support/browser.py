"""A headless Chromium in a network namespace, steered by the DevTools protocol.

async with Browser(where, folder) as browser:
    tab = await browser.open("http://127.0.0.1:10260/")
    assert await tab.value("document.title") == "Services"
"""

import asyncio
import base64
import contextlib
import itertools
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from nftproxy.lab import namespace
from tests.support.world import SLOW

CHROMIUM: Final = shutil.which("chromium") or ""
_PATIENCE: Final = 30 * SLOW
_KEYS: Final = {"Tab": 9, "Enter": 13}

Line = dict[str, Any]


class Browser:
    """A Chromium with a profile of its own; for the thread that entered the namespace `where`."""

    def __init__(self, where: str, folder: Path) -> None:
        self._where = where
        self._folder = folder
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Line]] = {}
        self._tabs: dict[str, Tab] = {}
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        with namespace.enter(self._where):
            self._process = await asyncio.create_subprocess_exec(
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",  # the tests are root
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._folder}",
                "about:blank",
                stderr=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
            )
            self._stack.push_async_callback(self._end)
            address = await asyncio.wait_for(self._address(), _PATIENCE)
            session = await self._stack.enter_async_context(aiohttp.ClientSession())
            self._socket = await session.ws_connect(address, max_msg_size=0)
        self._stack.push_async_callback(self._socket.close)
        hearing = asyncio.create_task(self._hear())
        self._stack.callback(hearing.cancel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def open(
        self,
        url: str,
        *,
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
        javascript: bool = True,
    ) -> "Tab":
        """Open a tab and wait until it is loaded."""
        target = await self.ask("Target.createTarget", {"url": "about:blank"})
        attached = await self.ask(
            "Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}
        )
        tab = self._tabs[attached["sessionId"]] = Tab(self, attached["sessionId"])
        for domain in ("Page", "Network", "Log", "Runtime"):
            await tab.ask(f"{domain}.enable")
        await tab.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await tab.ask("Emulation.setEmulatedMedia", features=[scheme])
        await tab.ask("Emulation.setScriptExecutionDisabled", value=not javascript)
        await tab.go(url)
        return tab

    async def ask(self, method: str, parameters: Line | None = None, session: str = "") -> Line:
        """Send a command and return its result."""
        number = next(self._numbers)
        message: Line = {"id": number, "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = session
        waiting = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(message)
        answer = await asyncio.wait_for(waiting, _PATIENCE)
        del self._answers[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: Line = answer["result"]
        return result

    async def _address(self) -> str:
        assert self._process.stderr
        async for line in self._process.stderr:
            if b"DevTools listening on " in line:
                return line.decode().split("DevTools listening on ")[1].strip()
        raise AssertionError("Chromium ended at its start")

    async def _hear(self) -> None:
        async for frame in self._socket:
            message: Line = frame.json()
            if "id" in message:
                if waiting := self._answers.get(message["id"]):
                    waiting.set_result(message)
            elif tab := self._tabs.get(message.get("sessionId", "")):
                tab.hear(message["method"], message["params"])

    async def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class Tab:
    """A tab, what it requested, and what it complained about.

    Scripts, styles or requests that were blocked.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._browser = browser
        self._session = session
        self._loaded = asyncio.Event()

    async def ask(self, method: str, **parameters: Any) -> Line:
        """Send a command for this tab."""
        return await self._browser.ask(method, parameters, self._session)

    def hear(self, event: str, parameters: Line) -> None:
        """Note what happened."""
        if event == "Page.loadEventFired":
            self._loaded.set()
        elif event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event == "Log.entryAdded" and parameters["entry"]["source"] == "security":
            self.complaints.append(parameters["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(parameters["exceptionDetails"]["text"])

    async def go(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        self._loaded.clear()
        await self.ask("Page.navigate", url=url)
        await self.loaded()

    async def loaded(self) -> None:
        """Wait until a page is loaded."""
        await asyncio.wait_for(self._loaded.wait(), _PATIENCE)
        self._loaded.clear()

    async def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript yields in the page."""
        found = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not await self.value(expression):
            assert time.monotonic() < end, f"never: {expression}"
            await asyncio.sleep(0.05)

    async def press(self, key: str) -> None:
        """Press a key, Tab or Enter."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.ask("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", **code)

    async def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        await self.ask("Input.insertText", text=text)

    async def picture(self) -> bytes:
        """Return a PNG of what is to be seen."""
        found = await self.ask("Page.captureScreenshot", format="png")
        return base64.b64decode(found["data"])
