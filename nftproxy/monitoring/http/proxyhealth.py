"""The proxy's own health server, for kubelet and load balancers (contract 7.1)."""

from collections.abc import Callable

from aiohttp import web

from nftproxy.model import Node
from nftproxy.monitoring.http.server import Limits, Server
from nftproxy.monitoring.metrics import Metrics
from nftproxy.monitoring.proxyhealth import ProxyHealth
from nftproxy.monitoring.response import NOT_FOUND, Response


def health_server(
    health: ProxyHealth,
    node: Callable[[], Node | None],
    metrics: Metrics,
    limits: Limits | None = None,
) -> Server:
    """Return the server; `node` returns the last known Node object."""

    async def respond(request: web.BaseRequest) -> Response:
        match request.path:
            case "/healthz":
                answer = health.healthz(node())
            case "/livez":
                answer = health.livez()
            case _:
                return NOT_FOUND
        metrics.answered(request.path[1:], answer.code)
        return answer

    return Server(respond, limits)
