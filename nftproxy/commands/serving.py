"""Common to `run` and `kube-proxy`.

The options that only nftproxy has, and the launch of the daemon.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nftproxy.configuration.flags import Flag

if TYPE_CHECKING:
    from nftproxy.configuration.config import KubeProxyConfiguration
    from nftproxy.daemon import Launch

Command = TypeVar("Command", bound=Callable[..., Any])


def own_options(command: Command) -> Command:
    """Add the options that only nftproxy has to a command."""
    refusals = click.option(
        "--log-refusals",
        is_flag=True,
        help="Log a line for each new connection that is refused or dropped, with Service, client "
        "and reason, at most 10 a second for each reason. Also effective with --config.",
    )
    counted = click.option(
        "--connection-metrics",
        type=click.Choice(["off", "frontends", "endpoints"]),
        default="frontends",
        show_default=True,
        help="Count connections for these, by reading the table at each scrape. Also effective "
        "with --config.",
    )
    limit = click.option(
        "--connection-metrics-limit",
        type=click.IntRange(min=0),
        default=10_000,
        show_default=True,
        metavar="N",
        help="The maximum of series of connections. Also effective with --config.",
    )
    return refusals(counted(limit(command)))


def launch(
    config: "KubeProxyConfiguration",
    values: Mapping[str, Any],
    flags: Iterable[Flag],
    *,
    limits_required: bool = True,
) -> "Launch":
    """Return how to start a daemon with a configuration.

    `values` are the parameters of a command with `flags`.
    """
    from nftproxy.configuration.settings import node_name
    from nftproxy.daemon import Figures, Launch
    from nftproxy.node import host

    hostname = host.hostname()
    return Launch(
        config=config,
        node_name=node_name(config, hostname),
        hostname=hostname,
        supported=host.supported_families(),
        config_file=Path(values["config"]) if values.get("config") else None,
        flags={
            flag.alias or flag.name: _shown(values.get(flag.parameter), flag.default)
            for flag in flags
        },
        init_only=bool(values.get("init_only")),
        limits_required=limits_required,
        figures=Figures(values["connection_metrics"]),
        series=values["connection_metrics_limit"],
        log_refusals=values["log_refusals"],
    )


def _shown(value: Any, default: str) -> str:
    if value is None or value == ():
        return default
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
