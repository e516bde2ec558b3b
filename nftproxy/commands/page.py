"""`nftproxy page`: the Services of this node in a browser."""

import asyncio
import contextlib
import signal
import socket
from ipaddress import ip_address

import click

from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.errors import ConfigError, UnusableError
from nftproxy.monitoring.http.bind import listen
from nftproxy.monitoring.http.server import Limits, Server
from nftproxy.node import memory
from nftproxy.node.host import hostname
from nftproxy.page.meter import Meter
from nftproxy.page.site import Site
from nftproxy.page.watch import TableWatch
from nftproxy.path.explanation import explain
from nftproxy.path.model import Path
from nftproxy.path.node import LiveNode
from nftproxy.path.request import request

_LIMITS = Limits(connections=64)
_EXAMPLES = """\b
For example:
  nftproxy page                           then open http://127.0.0.1:10260
  nftproxy page --listen [::1]:8080
  kubectl port-forward -n kube-system POD 10260    for a node of a cluster
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@click.option(
    "--listen",
    "address",
    metavar="IP:PORT",
    default="127.0.0.1:10260",
    show_default=True,
    help="Where to serve it. Everybody who reaches this address sees the names, addresses and "
    "endpoints of all Services.",
)
def page(address: str) -> None:
    """Show the Services of this node in a browser.

    The list of Services moves with their counters. The page of a Service shows its endpoints, their
    shares, and the path of a connection as a picture; a form explains any other connection; the
    last refusals have a page of their own. Nothing can be changed there. Needs the capability
    NET_ADMIN. Ctrl-C ends it.
    """
    _check(address)
    memory.collect_seldom()
    with contextlib.closing(TableWatch()) as watch:
        watch.require()
        asyncio.run(_serve(address, watch))


def _check(address: str) -> None:
    host, colon, port = address.rpartition(":")
    try:
        ip_address(host.strip("[]"))
        usable = bool(colon) and 0 <= int(port) <= 65535
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            [f"--listen: {address!r} is not IP:PORT"], hint="for example 127.0.0.1:10260"
        )


async def _serve(address: str, watch: TableWatch) -> None:
    meter = Meter(watch)
    site = Site(meter, _explain, socket.gethostname())
    try:
        listening = listen(address)
    except OSError as error:
        raise UnusableError(
            f"the page cannot be served on {address}: {error.strerror or error}",
            hint="name another address with --listen",
        ) from error
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listener = await Server(site.respond, _LIMITS).listen(listening)
    host, port = listening.getsockname()[:2]
    click.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}   Ctrl-C ends it")
    reading = asyncio.create_task(meter.run())
    await stop.wait()
    listener.close()
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading


def _explain(target: str, source: str, protocol: str) -> Path:
    with LiveNode(hostname()) as node:
        return explain(request(target, source or "node", protocol), node)
