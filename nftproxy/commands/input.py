"""What `run`, `render` and `diff` have in common: manifests and the node's settings."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from nftproxy.configuration.flags import node_options
from nftproxy.configuration.settings import NodeFacts, NodeSettings
from nftproxy.errors import ConfigError
from nftproxy.model import KINDS, Node, Service
from nftproxy.sources.manifests import Manifests, Scan
from nftproxy.store import Store

Command = TypeVar("Command", bound=Callable[..., Any])


def input_options(command: Command) -> Command:
    """Put --manifests and the node's flags on a command."""
    manifests = click.option(
        "--manifests",
        type=click.Path(path_type=Path, readable=False),  # `Manifests` says what is wrong with it
        multiple=True,
        required=True,
        metavar="PATH",
        help="A file, or a folder of files, with Services, EndpointSlices, Nodes and ServiceCIDRs as kubectl get -o yaml prints "
        "them; may be given several times.",
    )
    return manifests(node_options(command))


class Input:
    """Manifests, and the settings that they and the flags give this node."""

    def __init__(self, paths: tuple[Path, ...], flags: Mapping[str, Any]) -> None:
        from nftproxy.configuration import effective
        from nftproxy.configuration.settings import node_name, node_settings
        from nftproxy.configuration.validation import require_valid
        from nftproxy.node import host

        self.manifests = Manifests(paths)
        self.manifests.check()
        self.scan = self.manifests.scan()
        config, warnings = effective.node(flags)
        require_valid(config)
        hostname = host.hostname()
        self._name = node_name(config, hostname)
        node = self._node(self.scan)
        self.settings: NodeSettings
        self.settings, more = node_settings(config, _facts(node), hostname=hostname, supported=host.supported_families())
        self.warnings = [*warnings, *more, *self._doubts()]
        self.store = Store(self.settings.families)
        self.deliver(self.scan)

    def refuse_problems(self) -> None:
        """Raise when anything in the manifests could not be used."""
        if self.scan.problems:
            raise ConfigError(self.scan.problems)

    def deliver(self, scan: Scan) -> bool:
        """Put all objects of a scan into the store; return whether that changes anything."""
        changed = [self.store.replace(kind, scan.objects[kind]) for kind in KINDS.values() if kind is not Node]
        node = self._node(scan)
        if node is not None:
            changed.append(self.store.put(node))
        return any(changed)

    def _doubts(self) -> Iterator[str]:
        """Say what is no error, but looks like the wrong folder or the wrong name."""
        if not self.scan.objects[Service]:
            yield f"{', '.join(map(str, self.manifests.paths))}: no Service in there"
        known = [node.metadata.name for node in self.scan.objects[Node]]
        if known and self._name not in known:
            others = ", ".join(known)
            yield f"no Node {self._name!r} in the manifests, so its addresses and zone are unknown; --node-name can be {others}"

    def _node(self, scan: Scan) -> Node | None:
        nodes = (item for item in scan.objects[Node] if isinstance(item, Node))
        return next((node for node in nodes if node.metadata.name == self._name), None)


def _facts(node: Node | None) -> NodeFacts | None:
    if node is None:
        return None
    addresses = tuple((each.type, each.address) for each in node.status.addresses or ())
    return NodeFacts(addresses, node.spec.pod_cidrs or ())
