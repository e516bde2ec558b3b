"""`nftproxy kube-proxy`, and the program `kube-proxy`: the drop-in, with the original's flags, order of work and exit codes."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click
from loguru import logger

from nftproxy import log
from nftproxy.cli import run, tell
from nftproxy.configuration.flags import CONTEXT_SETTINGS, FLAGS, kube_proxy_options
from nftproxy.errors import NftproxyError
from nftproxy.node import memory


@click.command(name="kube-proxy", context_settings=CONTEXT_SETTINGS)
@kube_proxy_options
@click.option(
    "--connection-metrics",
    type=click.Choice(["off", "frontends", "endpoints"]),
    default="frontends",
    show_default=True,
    help="What connections are counted for, read from the table at each scrape. Obeyed beside --config.",
)
@click.option(
    "--connection-metrics-limit",
    type=click.IntRange(min=0),
    default=10_000,
    show_default=True,
    metavar="N",
    help="How many series of connections there may be. Obeyed beside --config.",
)
def kube_proxy(**flags: Any) -> int:
    """Take the place of kube-proxy on this node.

    Takes kube-proxy's flags and configuration file, and answers its health checks and scrapes. With --config, the file counts and most
    other flags are ignored, as kube-proxy does. Exit code 0 or 1.
    """
    try:
        return _start(flags)
    except NftproxyError as error:
        tell(error)
        return 1


def main() -> None:
    """Run the program kube-proxy and exit with 0 or 1 (contract 8.1.1)."""
    sys.exit(min(run(kube_proxy, prog_name="kube-proxy"), 1))


def _start(flags: dict[str, Any]) -> int:
    """Do what contract 8.1.2 says, in its order."""
    from nftproxy.configuration import configfile, effective
    from nftproxy.configuration.settings import node_name
    from nftproxy.configuration.validation import require_valid
    from nftproxy.node import host

    config, warnings = effective.kube_proxy(flags)
    log.start(config.logging.format, verbosity=config.logging.verbosity)
    memory.collect_seldom()
    for warning in warnings:
        logger.warning("{}", warning)
    require_valid(config)
    if target := flags.get("write_config_to"):
        Path(target).write_text(configfile.to_yaml(config), encoding="utf-8")
        logger.info("wrote the configuration to {}", target)
        return 0
    if flags.get("cleanup"):
        return _clean_up()
    from nftproxy.daemon import Figures, Launch

    launch = Launch(
        config=config,
        node_name=node_name(config, host.hostname()),
        hostname=host.hostname(),
        supported=host.supported_families(),
        config_file=Path(flags["config"]) if flags.get("config") else None,
        flags={flag.name: _shown(flags.get(flag.parameter), flag.default) for flag in FLAGS},
        init_only=bool(flags.get("init_only")),
        figures=Figures(flags["connection_metrics"]),
        series=flags["connection_metrics_limit"],
    )
    asyncio.run(_serve(launch, flags.get("master") or ""))
    return 0


async def _serve(launch: Any, master: str) -> None:
    from nftproxy.daemon import Daemon
    from nftproxy.monitoring.events import ApiSink, Events
    from nftproxy.monitoring.metrics import Metrics
    from nftproxy.sources.apiserver import connect

    metrics = Metrics(sorted(launch.supported), launch.config.feature_gates)
    connection = connect(launch.config.client_connection.kubeconfig, master, observer=metrics)
    events = Events(ApiSink(connection), launch.hostname)
    await Daemon(launch, connection, events, metrics).run()


def _clean_up() -> int:
    """Remove what every mode has left, ours included (contract 5.12.4)."""
    from nftproxy.kernel.transactions import Kernel
    from nftproxy.node import takeover

    with Kernel() as kernel:
        kernel.require()
        _, problems = takeover.take_over(kernel)
        if kernel.delete_table():
            logger.info("removed table inet nftproxy")
    return 1 if problems else 0


def _shown(value: Any, default: str) -> str:
    if value is None or value == ():
        return default
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
