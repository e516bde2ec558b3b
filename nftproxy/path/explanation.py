"""Why a Service answers or does not: a path, computed for the first packet of a connection.

`explain` is for commands and the page alike. It reads and never writes or sends. What our table
does is looked up element by element; everything else on the way is run as the kernel runs it.
"""

from nftproxy.address import bracketed
from nftproxy.path.aim import Aim, aim
from nftproxy.path.client import family_of, find
from nftproxy.path.cluster import Cluster, left_out
from nftproxy.path.frontend import Choice, choose, own_steps, refusal
from nftproxy.path.model import (
    Candidate,
    Cause,
    Client,
    Origin,
    Path,
    Reach,
    Step,
)
from nftproxy.path.passage import Passage, follow
from nftproxy.path.remarks import remarks
from nftproxy.path.request import Request
from nftproxy.path.view import NodeView
from nftproxy.selection import Locality

_ALWAYS = ("NetworkPolicy enforced outside of nftables (eBPF)", "what happens beyond this node")
_PING = (
    "A ping has no port, and Services are found by address and port: nothing answers it. "
    "That says nothing about the Service."
)


def explain(request: Request, node: NodeView, cluster: Cluster | None = None) -> Path:
    """Return what would happen to a connection. `cluster`: the objects, where somebody has them."""
    family = family_of(request.client)
    aimed = aim(request, node, cluster, family)
    if family is None and aimed.target.address:
        family = aimed.family
    if not node.has_table and cluster is None:
        return _stopped(request, node, aimed, _no_table())
    client = find(request, aimed.target.address, node)
    if aimed.causes and aimed.causes[0].code == "no-service-address" and aimed.target.port:
        return _beyond(request, node, aimed, client)
    if aimed.causes:
        return _path(request, node, aimed, client, Reach.NO, causes=aimed.causes)
    if request.protocol == "icmp":
        return _ping(request, node, aimed, client)
    return _connection(request, node, cluster, aimed, client)


def _no_table() -> Cause:
    said = "There is no table inet nftproxy on this node: no Service is served here."
    return Cause("no-table", said, ("systemctl start nftproxy",))


def _stopped(request: Request, node: NodeView, aimed: Aim, cause: Cause) -> Path:
    client = Client("", request.client if request.client in {"node", "outside"} else "pod")
    return _path(request, node, aimed, client, Reach.NO, causes=(cause,))


def _ping(request: Request, node: NodeView, aimed: Aim, client: Client) -> Path:
    target = aimed.target
    if target.kind in {"", "Endpoint"}:
        return _path(request, node, aimed, client, Reach.MAY)
    port = f":{target.port}" if target.port else ":PORT"
    cause = Cause("ping", _PING, (f"nftproxy explain {target.address}{port}",))
    return _path(request, node, aimed, client, Reach.NO, causes=(cause,))


def _beyond(request: Request, node: NodeView, aimed: Aim, client: Client) -> Path:
    """Follow a packet to an address of no Service: others' rules may stop it here as well."""
    passage = follow(aimed, Choice(), client, node)
    reach = Reach.NO if passage.reach is Reach.NO else Reach.MAY
    return _path(
        request,
        node,
        aimed,
        client,
        reach,
        steps=(*passage.before, *passage.after),
        causes=(*aimed.causes, *passage.causes),
        not_checked=tuple(passage.not_checked),
    )


def _connection(
    request: Request, node: NodeView, cluster: Cluster | None, aimed: Aim, client: Client
) -> Path:
    choice = choose(aimed, client, node)
    refused = refusal(aimed, choice, client, node, cluster)
    passage = follow(aimed, choice, client, node)
    others = [*refused, *passage.causes]
    if passage.translated:  # our table is not asked at all
        others = [*passage.causes]
    elif refused and passage.stopped_before:
        others = [*passage.causes, *refused]
    planned = (choice.picked,) if choice.picked else choice.endpoints
    used = passage.used if node.rules is not None else planned
    reach = _reach(choice, others, passage, node)
    more = remarks(aimed, client, node, cluster, passage, choice, reach)
    causes = tuple(dict.fromkeys([*others, *more.causes]))
    if more.stops:
        reach = Reach.NO
    steps = _steps(aimed, choice, client, node, passage)
    return _path(
        request,
        node,
        aimed,
        client,
        reach,
        steps=tuple(steps),
        candidates=_candidates(aimed, choice, used, passage, node, cluster),
        causes=causes,
        not_checked=(*passage.not_checked, *more.not_checked),
    )


def _reach(choice: Choice, causes: list[Cause], passage: Passage, node: NodeView) -> Reach:
    if node.rules is None:
        return Reach.NO if causes or not choice.endpoints else Reach.MAY
    return Reach.NO if causes and passage.reach is Reach.YES else passage.reach


def _steps(
    aimed: Aim, choice: Choice, client: Client, node: NodeView, passage: Passage
) -> list[Step]:
    own = own_steps(aimed, choice, client, node)
    if passage.stopped_before or passage.translated:
        return [*passage.before]
    return [*passage.before, *own, *passage.after]


def _candidates(
    aimed: Aim,
    choice: Choice,
    used: tuple[str, ...],
    passage: Passage,
    node: NodeView,
    cluster: Cluster | None,
) -> tuple[Candidate, ...]:
    slots = {one: choice.slots.get(one, 1) for one in used}
    found = [
        Candidate(
            *split(one),
            used=True,
            share=number / sum(slots.values()),
            reach=passage.of_endpoint.get(one),
        )
        for one, number in slots.items()
    ]
    if cluster and aimed.name and aimed.port:
        backends = cluster.backends(aimed.name, aimed.port, aimed.family, node.name)
        here = Locality(node.name, cluster.zone(node.name))
        chosen = {*used, *choice.endpoints}
        if not choice.allowed:
            chosen |= {*choice.cluster, *choice.local}
        found += left_out(backends, chosen, here, local_only=choice.local_only)
    return tuple(found)


def split(place: str) -> tuple[str, int]:
    """Return address and port of an endpoint as people write it."""
    host, _, port = place.rpartition(":")
    return host.strip("[]"), int(port)


def str_of(address: str, port: int) -> str:
    """Return an endpoint as people write it."""
    return f"{bracketed(address)}:{port}"


def _path(
    request: Request,
    node: NodeView,
    aimed: Aim,
    client: Client,
    reach: Reach,
    *,
    steps: tuple[Step, ...] = (),
    candidates: tuple[Candidate, ...] = (),
    causes: tuple[Cause, ...] = (),
    not_checked: tuple[str, ...] = (),
) -> Path:
    del request
    return Path(
        Origin.COMPUTED,
        aimed.target,
        client,
        reach,
        steps,
        candidates,
        causes,
        tuple(dict.fromkeys([*node.lacks, *not_checked, *_ALWAYS])),
        node=node.name,
    )
