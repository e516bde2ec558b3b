"""Which chains of other tables stop what Services need: packets are run through them.

The packets are first ones of connections to endpoints of this node's table: from a pod here, from
this node, and, where there are frontends for it, from outside. Each has its destination translated
already, as behind our own chain; chains before that are left to `explain`. Where there is no
endpoint to try, the policy alone speaks.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nftproxy.address import pack
from nftproxy.doctor.endpoints import EndpointPlace
from nftproxy.doctor.facts import Barrier
from nftproxy.path import evaluate
from nftproxy.path.packet import PROTOCOL_NAMES, PROTOCOLS, CtStatus, Ends, Packet, Tracked
from nftproxy.path.routing import Routing
from nftproxy.path.ruleset import OURS, NftBaseChain, Ruleset
from nftproxy.table.expressions import VerdictCode

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
# Chains at or before this priority see the ClusterIP still, where connections begin
_TRANSLATED = -100
_MOST = 12  # packets
_FAMILIES = {"inet": {4, 16}, "ip": {4}, "ip6": {16}, "iptables": {4}, "ip6tables": {16}}
"""The lengths of the addresses that chains of a family meet."""
_STRANGER = {4: pack("198.51.100.77"), 16: pack("2001:db8::77")}
_OWNERS = (("DOCKER", "docker"), ("ufw", "ufw"), ("ufw6", "ufw"))


@dataclass(frozen=True, slots=True)
class Trial:
    """A packet, the hooks of this node that it passes, and who sends it."""

    packet: Packet
    hooks: tuple[str, ...]
    what: str
    pods: str  # the interface of pods of this node; empty when none is known


def trials(endpoints: Iterable[EndpointPlace], around: Routing) -> list[Trial]:
    """Return packets that have to pass; few, and different ones first."""
    found: dict[tuple[object, ...], Trial] = {}
    places = [(pack(one.address), one) for one in endpoints]
    pods: dict[int, tuple[bytes, str]] = {}
    for address, _ in places:
        way = around.to(address)
        if not (way.local or way.error or way.gateway):
            pods.setdefault(len(address), (address, way.device))
    for address, place in places:
        for trial in _to(address, place, around, pods.get(len(address))):
            packet = trial.packet
            kind = packet.iif, packet.oif, trial.hooks, packet.protocol, len(address), trial.what
            found.setdefault(kind, trial)
    seen: Counter[tuple[str, int]] = Counter()
    ranked = []
    for trial in found.values():
        group = trial.what, len(trial.packet.ends.source)
        ranked.append((seen[group], trial))
        seen[group] += 1
    return [trial for _, trial in sorted(ranked, key=lambda one: one[0])][:_MOST]


def _to(
    address: bytes, place: EndpointPlace, around: Routing, pod: tuple[bytes, str] | None
) -> Iterator[Trial]:
    port, protocol = place.port, PROTOCOLS[place.protocol]
    way = around.to(address)
    if way.error:
        return
    name = "this node" if way.local else "pods"
    forward = ("prerouting", "input") if way.local else ("prerouting", "forward", "postrouting")
    senders = []
    pods = pod[1] if pod else ""
    if pod and pod[0] != address:
        senders.append((pod[0], pod[1], f"from pods to {name}"))
    if place.outside:
        uplink = around.to(_STRANGER[len(address)]).device
        if uplink:
            senders.append((_STRANGER[len(address)], uplink, f"from outside to {name}"))
    for source, device, what in senders:
        packet = _first(Ends(source, address, 40000, port), protocol)
        yield Trial(packet.at(device, "" if way.local else way.device), forward, what, pods)
    if not way.local:
        own = around.address_of(way.device, len(address))
        if own:
            packet = _first(Ends(own, address, 40000, port), protocol)
            leaving = packet.at("", way.device)
            what = f"from this node to {name}"
            yield Trial(leaving, ("output", "postrouting"), what, pods)


def _first(ends: Ends, protocol: int) -> Packet:
    """Return a packet whose destination has been translated."""
    status = CtStatus.DESTINATION_TRANSLATED | CtStatus.DESTINATION_DONE
    return Packet(ends, protocol, tracked=Tracked(ends, status))


def barriers(
    rules: Ruleset, around: Routing, tried: list[Trial], owners: dict[str, str]
) -> list[Barrier]:
    """Return the chains that stop packets; `owners` by table."""
    found: dict[tuple[str, str], Barrier] = {}
    for base in rules.base_chains():
        table = base.chain.table
        if table == OURS or base.hook not in _HOOKS or base.kind == "nat":
            continue
        if base.hook in {"prerouting", "output"} and base.priority <= _TRANSLATED:
            continue
        if table.family not in _FAMILIES:
            continue
        key = str(table), base.chain.name
        for barrier in _at(base, rules, around, tried, owners.get(str(table), "")):
            if key not in found or (barrier.sure and not found[key].sure):
                found[key] = barrier
    return list(found.values())


def _at(
    base: NftBaseChain, rules: Ruleset, around: Routing, tried: list[Trial], owner: str
) -> Iterator[Barrier]:
    table, chain = str(base.chain.table), base.chain.name
    sizes = _FAMILIES[base.chain.table.family]
    meeting = [
        one for one in tried if base.hook in one.hooks and len(one.packet.ends.source) in sizes
    ]
    for one in meeting:
        packet = _on(base.hook, one.packet)
        outcomes = evaluate.run(base, packet, rules, around)
        stopped = next((outcome for outcome in outcomes if not outcome.goes_on), None)
        if stopped is None or stopped.verdict == VerdictCode.QUEUE:
            continue
        why = (
            f"rule with {stopped.rule.place} of chain {stopped.chain.name}"
            if stopped.rule
            else "policy drop"
        )
        sure = len(outcomes) == 1
        port = f"{packet.ends.destination_port}/{PROTOCOL_NAMES[packet.protocol]}"
        yield Barrier(table, chain, base.hook, owner, one.what, why, sure, one.pods, port)
    if not tried and base.drops:
        yield Barrier(table, chain, base.hook, owner, "packets", "policy drop", sure=False)


def _on(hook: str, packet: Packet) -> Packet:
    """Return the packet as a hook sees it: only some know both interfaces."""
    if hook in {"prerouting", "input"}:
        return packet.at(packet.iif, "")
    if hook in {"output", "postrouting"}:
        return packet.at("", packet.oif)
    return packet


def owner_of(chains: Iterable[str], table: str = "") -> str:
    """Return the program that a table belongs to, by its chains; empty when they say nothing."""
    if table in {"inet firewalld", "ip firewalld", "ip6 firewalld"}:
        return "firewalld"
    for chain in chains:
        for start, owner in _OWNERS:
            if chain == start or chain.startswith((f"{start}-", f"{start}_")):
                return owner
    return ""
