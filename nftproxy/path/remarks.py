"""What rules and routes do not show: conntrack, bridges, ways back, other proxies, other Services.

Pure except for what it asks of `Node`.
"""

from dataclasses import dataclass, field

from nftproxy.address import parse_address
from nftproxy.path import causes
from nftproxy.path.aim import Aim
from nftproxy.path.cluster import Cluster
from nftproxy.path.frontend import Choice
from nftproxy.path.lookup import look_up
from nftproxy.path.model import Cause, Client, Reach
from nftproxy.path.packet import text
from nftproxy.path.passage import Passage
from nftproxy.path.view import Entry, NodeView, Places
from nftproxy.routes import Context
from nftproxy.selection import Locality
from nftproxy.table import schema

_LISTENS = "whether anything listens at an endpoint: connect to one directly"


@dataclass(slots=True)
class Remarks:
    """Causes in order; `stops`: they keep every connection from being answered."""

    causes: list[Cause] = field(default_factory=list)
    stops: bool = False
    not_checked: list[str] = field(default_factory=list)


def remarks(
    aimed: Aim,
    client: Client,
    node: NodeView,
    cluster: Cluster | None,
    passage: Passage,
    choice: Choice,
    reach: Reach,
) -> Remarks:
    """Look at what is beside the way."""
    found = Remarks()
    if node.around is not None:
        if reach is not Reach.NO:
            _full(found, node)
            _back(found, client, node, passage)
            _conntrack(found, aimed, client, node, passage)
            found.not_checked.append(_LISTENS)
            _mtu(found, client, node, passage)
        if proxies := node.other_proxies():
            found.causes.append(causes.two_proxies(proxies))
        if legacy := node.legacy():
            found.not_checked.append(
                f"tables of iptables-legacy: {', '.join(legacy)} (iptables-legacy-save shows them)"
            )
    if cluster and aimed.frontend and aimed.name:
        _claims(found, aimed, node, cluster)
        if node.rules is not None and node.has_table:
            _behind(found, aimed, node, cluster, choice)
    if cluster is None:
        found.not_checked.append(
            "endpoints that are left out, and why: --manifests has the objects"
        )
    return found


def _full(found: Remarks, node: NodeView) -> None:
    if (fill := node.fill()) and fill.is_full:
        found.causes.append(causes.conntrack_full(fill.held, fill.limit))
        found.stops = True


def _conntrack(
    found: Remarks, aimed: Aim, client: Client, node: NodeView, passage: Passage
) -> None:
    target = aimed.target
    if not target.address or not target.port:
        return
    everybody = node.entries(target.protocol, target.address, target.port)
    silent = set()
    gone = set()
    for entry in (one for one in everybody if one.source == client.address):
        if _is_gone(entry, target.protocol, node):
            gone.add(entry.answerer)
            continue
        if entry.answerer not in passage.used:
            if target.protocol == "udp":
                ends = target.protocol, target.address, target.port
                found.causes.append(causes.stale_entry(entry.source, entry.answerer, *ends))
                found.stops = True
        elif not entry.replied:
            silent.add(entry.answerer)
    if not found.causes:  # which else would be why
        found.causes += [causes.endpoint_silent(endpoint) for endpoint in sorted(silent)]
    if passage.used and silent >= set(passage.used):
        found.stops = True
    found.causes += [causes.gone_endpoint(client.address, endpoint) for endpoint in sorted(gone)]


def _is_gone(entry: Entry, protocol: str, node: NodeView) -> bool:
    """Whether the endpoint of a connection has left all slices, so that its client is reset."""
    where = schema.GONE.name(parse_address(entry.answers_from).family)
    there, _ = node.held.get(where, (entry.answers_from, protocol, entry.answers_port))
    return there


def _back(found: Remarks, client: Client, node: NodeView, passage: Passage) -> None:
    """Look whether answers come back through this node."""
    around = node.around
    assert around  # noqa: S101 - asked for with it alone
    bypassed = set()
    for end in passage.ends:
        packet = end.branch.packet
        if not end.branch.alive or end.way is None or end.way.local:
            continue
        there = text(packet.ends.destination)
        if text(packet.ends.source) != client.address or client.what == "node":
            continue
        link = around.link(end.way.device)
        if link and link.kind == "bridge" and _on_bridge(client.interface, link.name, around):
            six = ":" in there
            if node.sysctl(f"net/bridge/bridge-nf-call-{'ip6' if six else 'ip'}tables") != "1":
                found.causes.append(causes.bridge_bypass(link.name, six=six))
                bypassed.add(there)
        elif client.what == "outside" and end.way.gateway:
            found.causes.append(causes.passes_by(client.address, there))
    if bypassed and len(bypassed) == len(passage.used):
        found.stops = True


def _on_bridge(interface: str, bridge: str, around: Places) -> bool:
    """Whether a client and others on a bridge reach each other past the node.

    Its port may not be known.
    """
    ports = [link.name for link in around.links.values() if link.master == bridge]
    if interface != bridge:
        ports = [port for port in ports if port == interface]
    return any(not around.isolated(port) for port in ports)


def _mtu(found: Remarks, client: Client, node: NodeView, passage: Passage) -> None:
    around = node.around
    assert around  # noqa: S101
    link = around.link(client.interface)
    for end in passage.ends:
        if link and end.way and end.branch.alive and 0 < end.way.mtu < link.mtu:
            found.causes.append(causes.small_mtu(end.way.mtu, end.way.device, link.mtu, link.name))


def _claims(found: Remarks, aimed: Aim, node: NodeView, cluster: Cluster) -> None:
    assert aimed.frontend  # noqa: S101
    holder = look_up(node.held, aimed.family, aimed.frontend)
    claims = [str(name) for name in cluster.claims(aimed.frontend, aimed.family)]
    if len(claims) < 2 or holder is None:
        return
    owner = holder.service.partition(":")[0]
    others = [one for one in claims if one != owner]
    found.causes.insert(0, causes.two_claims(str(aimed.frontend), owner, others))
    found.stops = found.stops or (owner in claims and str(aimed.name) != owner)


def _behind(found: Remarks, aimed: Aim, node: NodeView, cluster: Cluster, choice: Choice) -> None:
    assert aimed.frontend and aimed.name  # noqa: S101, PT018
    here = Locality(node.name, cluster.zone(node.name))
    route = cluster.route(aimed.name, aimed.frontend, Context(aimed.family, here, ""))
    if route is None:
        return
    wanted = {str(one) for one in (*route.cluster, *route.local)}
    has = {*choice.cluster, *choice.local}
    if not wanted and not has:
        return
    if wanted == has or str(aimed.name) != aimed.target.service.partition(":")[0]:
        return
    parts = []
    if lacking := sorted(wanted - has):
        parts.append(f"it lacks {', '.join(lacking)}")
    if extra := sorted(has - wanted):
        parts.append(f"it still has {', '.join(extra)}")
    found.causes.append(causes.behind(" and ".join(parts), node.trouble()))
