"""What each address of the page shows.

Nothing here changes anything, and every answer forbids the browser whatever does not come from
here. Only those who name this server by an address or as localhost are answered: a page elsewhere
whose name leads to this machine must not read along.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote

import msgspec
from aiohttp import web

from nftproxy.errors import NftproxyError
from nftproxy.kernel.snapshot import ShownServicePort
from nftproxy.monitoring.http.server import Stream
from nftproxy.monitoring.response import Response
from nftproxy.page import charts, rendering
from nftproxy.page.drawing import draw
from nftproxy.page.meter import Meter
from nftproxy.page.rates import IDLE, KEPT, counts
from nftproxy.path.model import Path

ROWS: Final = 200  # Services of a list
_LONGEST: Final = 300  # characters of what a form sends
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FILES: Final = {
    "/page.css": "text/css; charset=utf-8",
    "/page.js": "text/javascript; charset=utf-8",
    "/icon.svg": "image/svg+xml",
}

Explain = Callable[[str, str, str], Path]
"""Explain a target, asked from somewhere (empty: this node), by a protocol (empty: its own)."""


class Site:
    """The pages of one node."""

    def __init__(self, meter: Meter, explain: Explain, node: str) -> None:
        self._meter = meter
        self._explain = explain
        self._node = node
        self._one = asyncio.Lock()  # an explanation at a time
        self._files = {
            path: files("nftproxy.page").joinpath("static", path[1:]).read_bytes()
            for path in _FILES
        }
        self._moved: tuple[int, bytes] = (-1, b"")  # what a reading has changed, said once for all

    async def respond(self, request: web.BaseRequest) -> Response | Stream:
        """Answer a request."""
        if not _is_local_name(request.host):
            return self._page("error.html", 421, what="This server is asked by an unknown name.")
        if request.method not in {"GET", "HEAD"}:
            return self._page("error.html", 405, what="There is nothing to change here.")
        path = request.path
        if kind := _FILES.get(path):
            return Response(200, self._files[path], {**_HEADERS, "Content-Type": kind})
        if path == "/":
            return await self._services(request.query.get("q", "")[:_LONGEST])
        if path.startswith("/service/"):
            return await self._service(unquote(path.removeprefix("/service/")))
        if path == "/explain":
            return await self._explanation(request.query)
        if path == "/refusals":
            return await self._refusals()
        if path == "/events":
            return Stream(
                self._events(request.query.get("service", "")[:_LONGEST]),
                {**_HEADERS, "Content-Type": "text/event-stream"},
            )
        return self._page("error.html", 404, what="There is no such page.")

    async def _services(self, query: str) -> Response:
        await self._meter.fresh()
        names = [name for name in self._meter.names if query.lower() in name.lower()]
        names.sort(key=lambda name: (-self._meter.rates.rate(name).connections, name))
        return self._page(
            "services.html",
            query=query,
            number=len(names),
            services=[(port, counts(port)) for port in await self._current(names[:ROWS])],
            rates=self._meter.rates,
        )

    async def _service(self, name: str) -> Response:
        await self._meter.fresh()
        found = await self._current([name])
        if not found:
            return self._page("error.html", 404, what=f"No Service {name!r} is in the table.")
        endpoints = {str(endpoint): count for endpoint, count in counts(found[0]).items()}
        path, trouble = await self._ask(name, "", "")
        return self._page(
            "service.html",
            service=found[0],
            counts=endpoints,
            rates=self._meter.rates,
            path=path,
            drawing=path and draw(path),
            problem=trouble,
        )

    async def _explanation(self, query: Mapping[str, str]) -> Response:
        to, source, protocol = (
            query.get(key, "").strip()[:_LONGEST] for key in ("to", "from", "protocol")
        )
        path, trouble = await self._ask(to, source, protocol) if to else (None, None)
        return self._page(
            "explain.html",
            to=to,
            source=source,
            protocol=protocol,
            path=path,
            drawing=path and draw(path),
            problem=trouble,
        )

    async def _refusals(self) -> Response:
        await self._meter.fresh()
        return self._page("refusals.html", refusals=list(self._meter.rates.refusals))

    async def _ask(
        self, to: str, source: str, protocol: str
    ) -> tuple[Path | None, NftproxyError | None]:
        async with self._one:
            try:
                return await asyncio.to_thread(self._explain, to, source, protocol), None
            except NftproxyError as error:
                return None, error

    async def _events(self, service: str) -> AsyncGenerator[bytes]:
        """Yield an event for each reading: what has moved.

        For the page of one service, its endpoints are in it as well.
        """
        yield b"retry: 2000\n\n"
        async for number in self._meter.ticks():
            if self._moved[0] != number:
                self._moved = number, self._changes()
            endpoints = {
                str(endpoint): count
                for port in await self._current([service])
                for endpoint, count in counts(port).items()
            }
            yield b"data: %b\ndata: %b\n\n" % (self._moved[1], msgspec.json.encode(endpoints))

    async def _current(self, names: Sequence[str]) -> list[ShownServicePort]:
        """Return service ports as they are now; none where the table cannot be read."""
        with suppress(NftproxyError):  # the next reading says why
            return await self._meter.services(names)
        return []

    def _changes(self) -> bytes:
        """Return the rates of the services that are or were busy, and their sparklines."""
        rows = {}
        for name, history in self._meter.rates.histories.items():
            newest = list(history)[-2:]
            if any(rate != IDLE for rate in newest):
                line = charts.sparkline(self._meter.rates.line(name), KEPT)
                last = newest[-1]
                rows[name] = [rendering.rate(last.connections), rendering.rate(last.refused), line]
        return msgspec.json.encode({"services": rows, "trouble": self._meter.trouble})

    def _page(self, template: str, code: int = 200, **values: object) -> Response:
        body = rendering.render(template, node=self._node, trouble=self._meter.trouble, **values)
        return Response(code, body, {**_HEADERS, "Content-Type": "text/html; charset=utf-8"})


def _is_local_name(host: str) -> bool:
    """Whether a request's Host is an address or localhost, with or without a port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
