"""`nftproxy kube-proxy`, and the program `kube-proxy`.

The replacement, with the original's flags, order of work and exit codes.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click
from loguru import logger

from nftproxy import log
from nftproxy.cli import run, tell
from nftproxy.commands.serving import launch, own_options
from nftproxy.configuration.flags import CONTEXT_SETTINGS, FLAGS, kube_proxy_options
from nftproxy.errors import NftproxyError
from nftproxy.node import memory


@click.command(name="kube-proxy", context_settings=CONTEXT_SETTINGS)
@kube_proxy_options
@own_options
def kube_proxy(**flags: Any) -> int:
    """Replace kube-proxy on this node.

    Accepts kube-proxy's flags and configuration file, and serves the same health checks and
    metrics. With --config, the file counts and most other flags are ignored, as in kube-proxy. Exit
    code 0 or 1.
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
    """Read and check the configuration, and do what the flags ask, in order (contract 8.1.2)."""
    from nftproxy.configuration import configfile, effective
    from nftproxy.configuration.validation import require_valid

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
    asyncio.run(_serve(launch(config, flags, FLAGS), flags.get("master") or ""))
    return 0


async def _serve(start: Any, master: str) -> None:
    from nftproxy.daemon import Daemon
    from nftproxy.monitoring.events import ApiSink, Events
    from nftproxy.monitoring.metrics import Metrics
    from nftproxy.sources.apiserver import connect
    from nftproxy.sources.encoding import accepted
    from nftproxy.sources.kubesource import KubeSource

    metrics = Metrics(sorted(start.supported), start.config.feature_gates)
    client = start.config.client_connection
    accept = accepted(client.accept_content_types or client.content_type)
    connection = connect(client.kubeconfig, master, accept=accept, observer=metrics)
    events = Events(ApiSink(connection), start.hostname)

    def sourcing(store: Any, **told: Any) -> KubeSource:
        return KubeSource(connection, store, start.node_name, **told)

    await Daemon(start, sourcing, metrics, events).run()


def _clean_up() -> int:
    """Remove the rules of every mode, ours included (contract 5.12.4)."""
    from nftproxy.kernel.transactions import Kernel
    from nftproxy.node import takeover

    with Kernel() as kernel:
        kernel.require()
        _, problems = takeover.take_over(kernel)
        if kernel.delete_table():
            logger.info("removed table inet nftproxy")
    return 1 if problems else 0
