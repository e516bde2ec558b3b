"""The metrics server, for Prometheus and for people (contract 7.3).

Plain HTTP without authentication, as in the original; therefore on loopback by default, and
profiles only on request.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from nftproxy.monitoring.http import profile
from nftproxy.monitoring.http.server import Limits, Server
from nftproxy.monitoring.metrics import KUBERNETES, Metrics
from nftproxy.monitoring.response import NOT_FOUND, Response

LIMITS = Limits(answer=profile.LONGEST + 15, connections=64)
_WARNING = """
{title}
Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.

"""  # noqa: E501

Page = Callable[[web.BaseRequest], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class About:
    """What the pages show of this process.

    `configuration` is the effective KubeProxyConfiguration as plain values; `flags` has all flags
    with their values as text. `set_verbosity` None means that it cannot be changed. The pages
    /flagz and /statusz are behind feature gates.
    """

    mode: str
    version: str
    configuration: Callable[[], Mapping[str, Any]]
    flags: Mapping[str, str]
    set_verbosity: Callable[[int], None] | None = None
    profiling: bool = False
    flagz: bool = True
    statusz: bool = True


def metrics_server(metrics: Metrics, about: About, limits: Limits = LIMITS) -> Server:
    """Return the server."""
    return Server(Pages(metrics, about).respond, limits)


class Pages:
    """Every page by its path; any other is 404."""

    def __init__(self, metrics: Metrics, about: About) -> None:
        self._metrics = metrics
        self._about = about
        self._started = time.time()
        self._scrapes: dict[tuple[CollectorRegistry, str], asyncio.Task[bytes]] = {}
        self._profiling = asyncio.Lock()
        self._pages: dict[str, Page] = {
            "/metrics": lambda request: self._scrape(request, metrics.registry),
            "/metrics/slis": lambda request: self._scrape(request, metrics.slis),
            "/healthz": self._ping,
            "/healthz/ping": self._ping,
            "/proxyMode": self._mode,
            "/configz": self._configuration,
        }
        if about.flagz:
            self._pages["/flagz"] = self._flags
        if about.statusz:
            self._pages["/statusz"] = self._status
        if about.profiling:
            self._pages |= {
                "/debug/pprof": self._profiles,
                "/debug/pprof/": self._profiles,
                "/debug/pprof/cmdline": self._command_line,
                "/debug/pprof/goroutine": self._stacks,
                "/debug/pprof/profile": self._profile,
                "/debug/flags/v": self._verbosity,
            }

    async def respond(self, request: web.BaseRequest) -> Response:
        """Answer one request."""
        page = self._pages.get(request.path)
        return await page(request) if page else NOT_FOUND

    async def _scrape(self, request: web.BaseRequest, registry: CollectorRegistry) -> Response:
        """Write out a registry in a thread; requests meanwhile get the same answer."""
        encode, content_type = choose_encoder(", ".join(request.headers.getall("Accept", [])))
        key = (registry, content_type)
        if key not in self._scrapes:
            self._scrapes[key] = asyncio.create_task(asyncio.to_thread(encode, registry))
            self._scrapes[key].add_done_callback(lambda _: self._scrapes.pop(key))
        body = await asyncio.shield(self._scrapes[key])
        return Response(200, body, {"Content-Type": content_type})

    async def _ping(self, request: web.BaseRequest) -> Response:
        self._metrics.pinged()
        detailed = "verbose" in request.query and request.path == "/healthz"
        return _text("[+]ping ok\nhealthz check passed\n" if detailed else "ok")

    async def _mode(self, _: web.BaseRequest) -> Response:
        return _text(self._about.mode)

    async def _configuration(self, _: web.BaseRequest) -> Response:
        body = msgspec.json.encode({"kubeproxy.config.k8s.io": self._about.configuration()})
        return Response(200, body, {"Content-Type": "application/json"})

    async def _flags(self, _: web.BaseRequest) -> Response:
        lines = [f"{name}={value}\n" for name, value in sorted(self._about.flags.items())]
        return _text(_WARNING.format(title="kube-proxy flagz") + "".join(lines))

    async def _status(self, _: web.BaseRequest) -> Response:
        up = int(time.time() - self._started)
        lines = {
            "Started": datetime.fromtimestamp(self._started, UTC).strftime(
                "%a %b %d %H:%M:%S UTC %Y"
            ),
            "Up": f"{up // 3600} hr {up // 60 % 60:02} min {up % 60:02} sec",
            "Binary version": f"nftproxy {self._about.version}",
            "Emulation version": ".".join(map(str, KUBERNETES[:2])),
            "Paths": " ".join(sorted(self._pages)),
        }
        text = "".join(f"{name}: {value}\n" for name, value in lines.items())
        return _text(_WARNING.format(title="kube-proxy statusz") + text)

    async def _profiles(self, _: web.BaseRequest) -> Response:
        return _text(profile.INDEX)

    async def _command_line(self, _: web.BaseRequest) -> Response:
        return _text(Path("/proc/self/cmdline").read_text().rstrip("\0"))

    async def _stacks(self, _: web.BaseRequest) -> Response:
        return _text(profile.stacks())

    async def _profile(self, request: web.BaseRequest) -> Response:
        try:
            seconds = float(request.query.get("seconds", "30"))
        except ValueError:
            return _text("seconds: a number is needed\n", 400)
        if self._profiling.locked():
            return _text("a profile is being taken; try again when it is done\n", 503)
        async with self._profiling:
            return _text(await asyncio.to_thread(profile.sample, seconds))

    async def _verbosity(self, request: web.BaseRequest) -> Response:
        if request.method != "PUT" or self._about.set_verbosity is None:
            return _text("PUT a number to change the verbosity of the log\n", 405)
        text = (await request.read()).decode(errors="replace").strip()
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            return _text(f"not a verbosity: {text[:80]!r}\n", 400)
        self._about.set_verbosity(int(text))
        return _text(f"successfully set klog.logging.verbosity to {text}\n")


def _text(text: str, code: int = 200) -> Response:
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return Response(code, text.encode(), headers)
