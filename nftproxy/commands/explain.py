"""`nftproxy explain`: why a Service answers or does not, step by step."""

import difflib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from nftproxy.commands.input import Input, accepted_addresses
from nftproxy.configuration.flags import CONTEXT_SETTINGS, node_options
from nftproxy.errors import ConfigError, UnusableError
from nftproxy.model import EndpointSlice, Node, ObjectName, Service, ServiceCIDR
from nftproxy.path.cluster import Cluster
from nftproxy.path.explanation import explain as explanation
from nftproxy.path.layout import lines
from nftproxy.path.model import Reach, to_json
from nftproxy.path.node import LiveNode, PlannedNode
from nftproxy.path.request import request
from nftproxy.path.view import NodeView as View
from nftproxy.routes import Key, Value
from nftproxy.sources.manifests import Scan
from nftproxy.table import preview

_EXAMPLES = """\b
For example:
  nftproxy explain default/web:http --from 10.244.1.9
  nftproxy explain 10.96.0.10:53 --protocol udp
  nftproxy explain 30080 --from outside
  nftproxy explain default/web --manifests examples/ --output json
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@click.argument("target", metavar="TARGET")
@click.option(
    "--from",
    "client",
    metavar="POD|IP[%INTERFACE]|node|outside",
    default="node",
    show_default=True,
    help="Who asks: a Pod by its NAMESPACE/NAME, if --manifests has it; a Pod or host by its "
    "address (and the interface its packets come in by, if not that of the route to it); this "
    "node; "
    "or somebody outside of the cluster.",
)
@click.option(
    "--protocol",
    type=click.Choice(["tcp", "udp", "sctp", "icmp"]),
    help="The protocol; by default the one that the Service has there. icmp explains a ping.",
)
@click.option(
    "--manifests",
    type=click.Path(path_type=Path, readable=False),
    multiple=True,
    metavar="PATH",
    help="A file or folder with Services, EndpointSlices, Nodes and ServiceCIDRs: says why "
    "endpoints are left out, and works without "
    "root; may be repeated.",
)
@node_options
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What to print.",
)
def explain(
    target: str,
    client: str,
    protocol: str | None,
    manifests: tuple[Path, ...],
    output: str,
    **flags: Any,
) -> int:
    """Explain, hop by hop, what happens to a connection to TARGET.

    TARGET is NAMESPACE/NAME, NAMESPACE/NAME:PORT, ADDRESS:PORT, or the number of a NodePort; the
    latter two also with a protocol, as 10.96.0.10:53/udp, which nftproxy show prints. Run it on the
    first node that the client's packets pass. Nothing is sent and nothing is changed: the table of
    nftproxy, the rules of every other table, routes, links, neighbours and conntrack are read, and
    the packet is followed through them. What could not be looked at is listed.

    Needs the capability NET_ADMIN; with --manifests and without it, objects alone are explained.
    Exit code 0: reaches an endpoint; 1: does not, or may not; 2: an error of the input.
    """
    given = Input(manifests, flags) if manifests else None
    if "/" in client:
        client = _pod(client, target, given.scan.pods if given else {})
    asked = request(target, client, protocol or "")
    with ExitStack() as cleanup:
        node: View
        name = given.settings.node_name if given else _node_name(flags)
        try:
            node = live = cleanup.enter_context(LiveNode(name))
            if given and not live.has_table:
                node = _planned(given, "there is no table inet nftproxy on this machine")
        except UnusableError:
            if given is None:
                raise
            node = _planned(given, "reading them needs the capability NET_ADMIN")
        path = explanation(asked, node, cluster(given.scan) if given else None)
    click.echo(to_json(path).decode() if output == "json" else "\n".join(lines(path)))
    return 0 if path.reach is Reach.YES else 1


def _pod(name: str, target: str, pods: Mapping[ObjectName, tuple[str, ...]]) -> str:
    """Return the address of a Pod by its name: in IPv6 where the target is."""
    namespace, _, rest = name.partition("/")
    found = pods.get(ObjectName(namespace, rest), ())
    if not found:
        near = difflib.get_close_matches(name, map(str, pods), 3, 0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            [f"--from {name[:80]!r}: the manifests have no such Pod with an address"],
            hint=hint or "kubectl get pods -o yaml adds Pods to --manifests; or give the address",
        )
    wanted = [each for each in found if (":" in each) is (target.count(":") > 1)]
    return (wanted or found)[0]


def _node_name(flags: dict[str, Any]) -> str:
    from nftproxy.configuration import effective
    from nftproxy.configuration.settings import node_name
    from nftproxy.node import host

    config, _ = effective.node(flags)
    return node_name(config, host.hostname())


def _planned(given: Input, why: str) -> PlannedNode:
    settings = given.settings
    found, _ = accepted_addresses(settings)
    accepted = {
        family: [each.text for each in found[family]] if family in found else None
        for family in settings.families
    }
    elements: dict[str, dict[Key, Value]] = {}
    for family in settings.families:
        elements |= preview.preview(settings, given.store, family, found.get(family)).added
    return PlannedNode(settings.node_name, elements, accepted, why)


def cluster(scan: Scan) -> Cluster:
    """Return the objects of a scan."""
    slices: dict[ObjectName, list[EndpointSlice]] = {}
    for piece in scan.objects[EndpointSlice]:
        if isinstance(piece, EndpointSlice) and piece.service:
            slices.setdefault(piece.service, []).append(piece)
    return Cluster(
        {one.metadata.key: one for one in scan.objects[Service] if isinstance(one, Service)},
        {name: tuple(pieces) for name, pieces in slices.items()},
        {one.metadata.name: one for one in scan.objects[Node] if isinstance(one, Node)},
        tuple(one for one in scan.objects[ServiceCIDR] if isinstance(one, ServiceCIDR)),
    )
