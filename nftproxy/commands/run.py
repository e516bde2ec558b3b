"""`nftproxy run`: follow manifests and keep the table in step; the daemon of `kube-proxy`."""

import asyncio
from pathlib import Path
from typing import Any

import click
from loguru import logger

from nftproxy import log
from nftproxy.commands.input import manifests_option
from nftproxy.commands.serving import launch, own_options
from nftproxy.configuration.flags import CONTEXT_SETTINGS, RUN_FLAGS, run_options
from nftproxy.node import memory
from nftproxy.sources.manifests import Manifests

_EXAMPLES = """\b
For example, on a node of the lab:
  nftproxy run --manifests examples/ --node-name node1 --cluster-cidr 10.244.0.0/16,fd00:244::/32
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@manifests_option
@run_options
@own_options
def run(manifests: tuple[Path, ...], **flags: Any) -> None:
    """Keep this node's table in step with manifests, until stopped.

    A change is applied when a file is closed or renamed into place. The log names broken objects,
    and their last good version stays in use. SIGTERM and SIGINT end the process and leave the table
    as it is, so traffic goes on: nftproxy cleanup removes it.

    Everything else is as in kube-proxy, with the same flags: health checks, metrics, health check
    node ports, clean-up of UDP flows, conntrack settings, and the removal of the rules of other
    modes of kube-proxy. Only events need an API server. Conntrack settings that cannot be made are
    a warning.
    """
    from nftproxy.configuration import effective
    from nftproxy.configuration.validation import require_valid

    config, warnings = effective.run(flags)
    log.start(config.logging.format, verbosity=config.logging.verbosity)
    memory.collect_seldom()
    for warning in warnings:
        logger.warning("{}", warning)
    require_valid(config)
    source = Manifests(manifests)
    source.check()
    asyncio.run(_serve(launch(config, flags, RUN_FLAGS, limits_required=False), source))


async def _serve(start: Any, manifests: Manifests) -> None:
    from nftproxy.daemon import Daemon
    from nftproxy.monitoring.metrics import Metrics
    from nftproxy.sources.filesource import FileSource

    def sourcing(store: Any, **told: Any) -> FileSource:
        return FileSource(manifests, store, start.node_name, **told)

    await Daemon(
        start, sourcing, Metrics(sorted(start.supported), start.config.feature_gates)
    ).run()
