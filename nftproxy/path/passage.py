"""A packet's way through this node, computed.

Every hook, the route to each endpoint, what stops it.

Pure except for what it asks of `Node`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nftproxy.address import pack
from nftproxy.path.aim import Aim
from nftproxy.path.causes import (
    link_down,
    neighbour_failed,
    no_route,
    stopped_by_others,
    translated_by_others,
    untracked,
)
from nftproxy.path.frontend import Choice
from nftproxy.path.hooks import Visit
from nftproxy.path.journey import End, Journey, Traveller
from nftproxy.path.model import Cause, Client, Outcome, Place, PlaceKind, Reach, Step
from nftproxy.path.packet import PROTOCOLS, Ends, Packet, place, text
from nftproxy.path.routing import REVERSE_PATH, SOURCE_REFUSED
from nftproxy.path.ruleset import OURS
from nftproxy.path.steps import doubted, hook_steps
from nftproxy.path.view import NodeView, Places
from nftproxy.table import netlink
from nftproxy.table.expressions import Immediate

_FIRST = {"ingress", "prerouting", "output"}


@dataclass(slots=True)
class Passage:
    """What became of a packet. `translated`: by another table, so ours was not asked."""

    reach: Reach = Reach.MAY
    before: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    used: tuple[str, ...] = ()
    of_endpoint: dict[str, Reach] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    translated: bool = False
    stopped_before: bool = False
    not_checked: list[str] = field(default_factory=list)


def follow(aimed: Aim, choice: Choice, client: Client, node: NodeView) -> Passage:
    """Follow the first packet."""
    if node.rules is None or node.around is None:
        return Passage()
    target = aimed.target
    if not client.address:  # this node needs a route even to an address that is translated
        why = node.around.to(pack(target.address)).error
        cause = no_route(why, target.address, "", "")
        return Passage(Reach.NO, causes=[cause], stopped_before=True)
    ends = Ends(pack(client.address), pack(target.address), None, target.port)
    packet = Packet(ends, PROTOCOLS[target.protocol], iif=client.interface)
    traveller = Traveller(node.rules, node.around)
    journey = traveller.leave(packet) if client.what == "node" else traveller.arrive(packet)
    found = Passage(ends=journey.ends)
    _judge(found, journey, aimed, choice, node)
    _tell(found, journey, place(ends.destination, ends.destination_port), node)
    return found


def _moved(visit: Visit) -> bool:
    before, after = visit.packet.ends, visit.outcome.packet.ends
    return visit.outcome.translated and (before.destination, before.destination_port) != (
        after.destination,
        after.destination_port,
    )


def _there(end: End) -> str:
    return place(end.branch.packet.ends.destination, end.branch.packet.ends.destination_port)


def _judge(found: Passage, journey: Journey, aimed: Aim, choice: Choice, node: NodeView) -> None:
    """Decide what gets where, and why the rest does not."""
    fates: dict[str, list[bool]] = {}
    causes: dict[Cause, None] = {}
    for end in journey.ends:
        visits = end.branch.visits
        ours = any(_moved(visit) for visit in visits if visit.base.chain.table == OURS)
        foreign = next((v for v in visits if _moved(v) and v.base.chain.table != OURS), None)
        cause = _cause(end, node)
        if foreign and not ours:
            found.translated = True
            cause = translated_by_others(foreign, _text(foreign, node))
        elif not ours and end.arrives and aimed.frontend and choice.endpoints:
            cause = cause or _untracked(visits, node)
        if cause is not None:
            causes[cause] = None
        last = end.branch.last
        if not ours and not end.arrives and last and last.base.chain.table != OURS:
            found.stopped_before = found.stopped_before or last.base.hook in _FIRST
        good = end.arrives and cause is None
        if ours or aimed.frontend is None:
            fates.setdefault(_there(end), []).append(good)
        elif not choice.endpoints or cause is not None:
            fates.setdefault("", []).append(False)
    found.causes = list(causes)
    found.of_endpoint = {
        there: Reach.YES if all(all_) else Reach.MAY if any(all_) else Reach.NO
        for there, all_ in fates.items()
    }
    found.used = tuple(there for there in found.of_endpoint if there and aimed.frontend)
    every = set(found.of_endpoint.values()) or {Reach.NO}
    found.reach = every.pop() if len(every) == 1 else Reach.MAY
    found.not_checked += doubted(end.branch for end in journey.ends)


def _untracked(visits: Sequence[Visit], node: NodeView) -> Cause:
    """Find the rule that keeps a packet from conntrack, in the chains that it met before."""
    assert node.rules  # noqa: S101 - followed only with them
    for visit in visits:
        if visit.outcome.packet.untracked and not visit.packet.untracked:
            for rule in node.rules.rules(visit.base.chain):
                if any(each.name in {"notrack", "target"} for each in rule.expressions):
                    return untracked(rule, node.rule_text(rule))
    return untracked(None, "")


def _text(visit: Visit, node: NodeView) -> str:
    return node.rule_text(visit.outcome.rule) if visit.outcome.rule else ""


def _cause(end: End, node: NodeView) -> Cause | None:
    """Return why no answer can come from an end.

    None where our own table decided, or nothing is wrong.
    """
    packet = end.branch.packet
    there = text(packet.ends.destination)
    around = node.around
    assert around  # noqa: S101 - followed only with it
    if not end.branch.alive:
        if end.branch.why:
            why = _why(end.branch.why, packet.iif, node)
            return no_route(why, there, packet.iif, _forwards(node, there, packet.iif))
        last = end.branch.last
        if last is None or last.base.chain.table == OURS:
            return None
        return stopped_by_others(last, _text(last, node), _jumps(last, node))
    if end.delivered or end.way is None:
        return None
    if packet.iif and _forwards(node, there, packet.iif) == "0":
        return no_route("", there, packet.iif, "0")
    # The route of an interface that is down is gone, and packets take the default route.
    link = around.link(around.belongs_to(there) or end.way.device)
    if link and not link.up:
        return link_down(link.name)
    next_hop = end.way.gateway or there
    if around.neighbour(next_hop, end.way.device) in {"failed", "incomplete"}:
        return neighbour_failed(next_hop, end.way.device, is_router=bool(end.way.gateway))
    return None


def _jumps(visit: Visit, node: NodeView) -> list[str]:
    """Return the names of the chains that a base chain goes to: they show whose it is."""
    assert node.rules  # noqa: S101
    found: list[str] = []
    for rule in node.rules.rules(visit.base.chain):
        for each in rule.expressions:
            if each.name == "immediate" and Immediate.DATA in each.data:
                verdict = netlink.parts(each.data[Immediate.DATA]).get(netlink.Data.VERDICT, b"")
                found.append(
                    netlink.text(netlink.parts(verdict).get(netlink.VerdictAttribute.CHAIN, b""))
                )
    return found


def _why(error: str, iif: str, node: NodeView) -> str:
    """Distinguish the reverse path filter from other refusals.

    Since Linux 6.14 the kernel says EINVAL for both.
    """
    filters = [node.sysctl(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", iif)]
    is_filter = error == SOURCE_REFUSED and any(value in {"1", "2"} for value in filters)
    return REVERSE_PATH if is_filter else error


def _forwards(node: NodeView, address: str, iif: str) -> str:
    family = "ipv6" if ":" in address else "ipv4"
    if family == "ipv6":
        return node.sysctl("net/ipv6/conf/all/forwarding")
    return node.sysctl(f"net/ipv4/conf/{iif}/forwarding") if iif else ""


def _tell(found: Passage, journey: Journey, frontend: str, node: NodeView) -> None:
    for stop, _, steps in hook_steps(journey, frontend, node.rule_text):
        early = stop.hook in _FIRST or stop.family == "bridge"
        for step in steps:
            (found.before if early and not step.endpoint else found.after).append(step)
    around = node.around
    assert around  # noqa: S101
    routes = [_route_step(there, journey.ends, around) for there in found.used]
    found.after = [*filter(None, routes), *_sources(journey.ends), *found.after]


def _sources(ends: list[End]) -> list[Step]:
    """Say which source address each endpoint sees."""
    seen: dict[str, list[str]] = {}
    for end in ends:
        tracked, source = end.branch.packet.tracked, end.branch.packet.ends.source
        same = tracked is None or tracked.original.source == source
        said = f"stays {text(source)}" if same else f"becomes {text(source)}: masqueraded"
        if end.branch.alive:
            seen.setdefault(said, []).append(_there(end))
    where = Place(PlaceKind.HOOK, "postrouting")
    if len(seen) == 1:
        return [Step("source", where, "", said, Outcome.OK) for said in seen]
    return [
        Step("source", where, "", said, Outcome.OK, endpoint=there)
        for said, all_ in seen.items()
        for there in dict.fromkeys(all_)
    ]


def _route_step(there: str, ends: list[End], around: Places) -> Step | None:
    end = next((one for one in ends if _there(one) == there), None)
    if end is None:
        return None
    packet = end.branch.packet
    way = end.way or around.to(
        packet.ends.destination, source=packet.ends.source, iif=packet.iif, mark=packet.mark or 0
    )
    where = Place(PlaceKind.ROUTE)
    if way.error:
        return Step("endpoint", where, there, way.error, Outcome.STOPPED, endpoint=there)
    if way.local:
        said = "a process on this node"
        return Step("endpoint", where, there, said, Outcome.OK, endpoint=there)
    state = around.neighbour(way.gateway or text(packet.ends.destination), way.device)
    near = f", neighbour {state}" if state else ""
    said = f"via {way.gateway} dev {way.device}{near}" if way.gateway else (
        f"route dev {way.device}{near}"
    )  # fmt: skip
    outcome = Outcome.STOPPED if state in {"failed", "incomplete"} else Outcome.OK
    return Step("endpoint", where, there, said, outcome, endpoint=there)
