"""The proxy's own health server (contract 7.1): what kubelet and load balancers of the node ask."""

from collections.abc import Callable

from aiohttp import web

from nftproxy.model import Node
from nftproxy.monitoring.health import Answer, ProxyHealth
from nftproxy.monitoring.http.server import Limits, Server
from nftproxy.monitoring.metrics import Metrics

NOT_FOUND = Answer(
    404, b"404 page not found\n", {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
)


def health_server(health: ProxyHealth, node: Callable[[], Node | None], metrics: Metrics, limits: Limits | None = None) -> Server:
    """Return the server; `node` gives the Node object as last seen."""

    async def respond(request: web.BaseRequest) -> Answer:
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
