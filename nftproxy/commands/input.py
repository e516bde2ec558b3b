"""The common input of `render` and `diff`: manifests and the node's settings."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from nftproxy.address import Address, Family
from nftproxy.configuration.flags import node_options
from nftproxy.configuration.settings import ALL, NodeSettings, is_loopback
from nftproxy.errors import ConfigError
from nftproxy.model import Service, ServiceCIDR
from nftproxy.sources.assignment import assign
from nftproxy.sources.delivery import deliver, doubts, facts, own_node
from nftproxy.sources.manifests import Manifests
from nftproxy.store import Store
from nftproxy.table import schema

Command = TypeVar("Command", bound=Callable[..., Any])


def manifests_option(command: Command) -> Command:
    """Add --manifests to a command."""
    option = click.option(
        "--manifests",
        type=click.Path(path_type=Path, readable=False),  # `Manifests` reports its faults
        multiple=True,
        required=True,
        metavar="PATH",
        help="A file, or a folder of files, with Services, EndpointSlices, Nodes and ServiceCIDRs "
        "as kubectl get -o yaml prints "
        "them; may be repeated.",
    )
    return option(command)


def input_options(command: Command) -> Command:
    """Add --manifests and the node's flags to a command."""
    return manifests_option(node_options(command))


class Input:
    """Manifests, and the settings of this node by them and the flags."""

    def __init__(
        self, paths: tuple[Path, ...], flags: Mapping[str, Any], *, assign_cluster_ips: bool = False
    ) -> None:
        from nftproxy.configuration import effective
        from nftproxy.configuration.settings import node_name, node_settings
        from nftproxy.configuration.validation import require_valid
        from nftproxy.node import host

        manifests = Manifests(paths)
        manifests.check()
        self.scan = manifests.scan()
        config, warnings = effective.node(flags)
        require_valid(config)
        hostname = host.hostname()
        name = node_name(config, hostname)
        node = own_node(self.scan, name)
        self.settings: NodeSettings
        self.settings, more = node_settings(
            config, facts(node), hostname=hostname, supported=host.supported_families()
        )
        if assign_cluster_ips:
            objects = self.scan.objects
            services = assign(objects[Service], objects[ServiceCIDR], self.settings.families)  # type: ignore[arg-type]
            objects[Service] = list(services)
        self.warnings = [*warnings, *more, *doubts(manifests, self.scan, name), *self.scan.notes]
        self.store = Store(self.settings.families, note=self.warnings.append)
        deliver(self.store, self.scan, name)

    def refuse_problems(self) -> None:
        """Raise if anything in the manifests is unusable."""
        if self.scan.problems:
            raise ConfigError(self.scan.problems)


def accepted_addresses(settings: NodeSettings) -> tuple[dict[Family, list[Address]], list[str]]:
    """Return the NodePort addresses that the settings alone show, and what they leave open."""
    addresses: dict[Family, list[Address]] = {}
    doubts: list[str] = []
    for family, networks in settings.nodeport_addresses.items():
        if networks is not ALL:
            # NodePorts on loopback addresses are no elements
            others = [each for each in networks if not is_loopback(Address(family, each.text))]
            addresses[family] = [
                Address(family, network.text) for network in others if network.length == family.bits
            ]
            doubts += [
                f"nodePortAddresses: which addresses of {network} this node has is not known here; "
                f"{schema.NODEPORT_IPS.name(family)} has none of them"
                for network in others
                if network.length != family.bits
            ]
    return addresses, doubts
