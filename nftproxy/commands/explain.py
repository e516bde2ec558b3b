"""`nftproxy explain`: why a Service does, or does not, answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath

import click

from nftproxy.commands.input import Input
from nftproxy.configuration.flags import CONTEXT_SETTINGS, node_options
from nftproxy.errors import KernelError, NftproxyError
from nftproxy.model import EndpointSlice, Node, ObjectName, Service, ServiceCIDR
from nftproxy.node.host import hostname
from nftproxy.path import text
from nftproxy.path.cluster import Cluster
from nftproxy.path.explain import explain as explanation
from nftproxy.path.model import Path, Reach, to_json
from nftproxy.path.planned import PlannedNode
from nftproxy.path.request import parse_target
from nftproxy.path.view import NodeView
from nftproxy.sources.manifests import Scan
from nftproxy.table.preview import preview

_STYLES = {
    "bad": {"fg": "red", "bold": True},
    "warning": {"fg": "yellow"},
    "quiet": {"dim": True},
    "bold": {"bold": True},
}
_EXAMPLES = """\b
For example:
  nftproxy explain default/web:http
  nftproxy explain default/web:http --from 10.244.1.9
  nftproxy explain 10.96.0.10:80 --from outside --output json
  nftproxy explain 30080
  nftproxy explain default/web --manifests examples/ --node-name node1
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@click.argument("target")
@click.option(
    "--from",
    "source",
    default="",
    metavar="IP|node|outside",
    help="Who connects: the address of a Pod or of anybody else, this node (the default), or a "
    "client outside of the cluster.",
)
@click.option("--protocol", default="", metavar="tcp|udp|sctp", help="If the port has several.")
@click.option(
    "--manifests",
    type=click.Path(path_type=FilePath, readable=False),
    multiple=True,
    metavar="PATH",
    help="Services, EndpointSlices and Nodes as kubectl get -o yaml prints them: with these, the "
    "answer says why an "
    "endpoint is left out. Without a table on this machine they are all there is to explain.",
)
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What to print.",
)
@node_options
def explain(
    target: str,
    source: str,
    protocol: str,
    manifests: tuple[FilePath, ...],
    output: str,
    **flags: object,
) -> int:
    """Explain what would happen to a connection, hop by hop, whoever's rule it is.

    TARGET is NAMESPACE/NAME or NAMESPACE/NAME:PORT, ADDRESS:PORT, or the number of a NodePort.

    Nothing is sent. The table, routes, neighbours and the rules of all tables are read; the answer
    names the rule that stops a packet, the command that cures it, and what was not checked. Needs
    the capability NET_ADMIN, except with --manifests alone.

    Exit code 0: a connection reaches an endpoint. 1: it does not, or may not. 2: an error.
    """
    asked = parse_target(target)
    given = Input(manifests, flags) if manifests else None
    cluster = cluster_of(given.scan) if given else None
    with view(given) as node:
        path = explanation(asked, source, protocol, node, cluster)
    show(path, output)
    return 0 if path.reach is Reach.YES else 1


@contextmanager
def view(given: Input | None = None) -> Iterator[NodeView]:
    """Lend the view of this node; that of manifests if there is no table, or no right to read it."""
    from nftproxy.path.node import ThisNode

    name = given.settings.node_name if given else hostname()
    why = "there is no table on this machine"
    try:
        node = ThisNode(name)
    except (KernelError, PermissionError) as error:
        if given is None:
            raise _lacks_capability(error) from error
        why = "reading it needs the capability NET_ADMIN"
    else:
        with node:
            try:
                usable = node.has_table() or given is None
            except KernelError as error:
                if given is None:
                    raise _lacks_capability(error) from error
                usable, why = False, "reading it needs the capability NET_ADMIN"
            if usable:
                yield node
                return
    assert given  # noqa: S101 - else the node is what there is
    previews = [preview(given.settings, given.store, each) for each in given.settings.families]
    yield PlannedNode(name, previews, why)


def _lacks_capability(error: Exception) -> NftproxyError:
    return NftproxyError(
        f"the table of this node cannot be read: {error}",
        hint="run as root or with the capability NET_ADMIN; --manifests explains objects without "
        "it",
    )


def cluster_of(scan: Scan) -> Cluster:
    """Return the objects of manifests as a cluster."""
    services = {
        each.metadata.key: each for each in scan.objects[Service] if isinstance(each, Service)
    }
    slices: dict[ObjectName, list[EndpointSlice]] = {}
    for piece in scan.objects[EndpointSlice]:
        if (
            isinstance(piece, EndpointSlice)
            and (labels := piece.metadata.labels)
            and labels.service_name
        ):
            owner = ObjectName(piece.metadata.namespace, labels.service_name)
            slices.setdefault(owner, []).append(piece)
    return Cluster(
        services,
        {name: tuple(pieces) for name, pieces in slices.items()},
        {each.metadata.name: each for each in scan.objects[Node] if isinstance(each, Node)},
        tuple(each for each in scan.objects[ServiceCIDR] if isinstance(each, ServiceCIDR)),
    )


def show(path: Path, output: str) -> None:
    """Print a path."""
    if output == "json":
        click.echo(to_json(path))
        return
    for line in text.lines(path):
        click.echo(click.style(line.text, **_STYLES[line.style]) if line.style else line.text)  # type: ignore[arg-type]
