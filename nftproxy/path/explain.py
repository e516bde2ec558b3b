"""A path, computed: what would happen to the first packet of a connection, whoever's rule it is.

Pure, apart from its questions.

The table is asked for single elements, the packet is run through the base chains of all tables, and
the kernel for routes and neighbours. Whatever was not looked at is named.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from nftproxy.address import pack
from nftproxy.path import causes, own
from nftproxy.path.asker import NODE, Asker, asker
from nftproxy.path.cluster import Cluster, left_out
from nftproxy.path.hooks import Branch
from nftproxy.path.journey import End, Journey, Traveller
from nftproxy.path.lookup import MOST, Lookup, look_up
from nftproxy.path.model import (
    Candidate,
    Cause,
    Client,
    Origin,
    Outcome,
    Path,
    Place,
    PlaceKind,
    Reach,
    Step,
    Target,
)
from nftproxy.path.packet import PROTOCOLS, Ends, Packet, place, text
from nftproxy.path.request import AskedTarget as Asked
from nftproxy.path.steps import Met, doubted, hook_steps
from nftproxy.path.targets import Destination, check_protocol, destination
from nftproxy.path.view import Machine, NodeView
from nftproxy.selection import Endpoint, Locality

FOLLOWED: Final = 8  # endpoints whose way is followed
_DEAD: Final = {"failed", "incomplete"}  # neighbours that do not answer


def explain(
    asked: Asked, source: str, protocol: str, node: NodeView, cluster: Cluster | None
) -> Path:
    """Explain a connection; ConfigError if `source` or `protocol` means nothing."""
    protocol = check_protocol(protocol)
    if not node.has_table():
        return _without_table(asked, source, node)
    found = destination(asked, protocol, node, cluster)
    if isinstance(found, Cause):
        client = Client("", source or NODE)
        return Path(
            Origin.COMPUTED, Target(asked.asked), client, Reach.NO, causes=(found,), node=node.name
        )
    machine = node.machine
    who = asker(source, found.family, found.address, machine.near if machine else None)
    lookup = look_up(node.held, found.family, found.frontend)
    return _Explanation(asked.asked, found, who, lookup, node, cluster).path()


def _without_table(asked: Asked, source: str, node: NodeView) -> Path:
    cause = Cause(
        "no-table",
        "There is no table inet nftproxy on this node, so no Service is programmed: nftproxy does "
        "not run here, "
        "or its first sync failed.",
        ("nftproxy run --manifests FOLDER",),
    )
    client = Client("", source or NODE)
    return Path(
        Origin.COMPUTED, Target(asked.asked), client, Reach.NO, causes=(cause,), node=node.name
    )


@dataclass(slots=True)
class _Explanation:
    """One explanation in the making."""

    asked: str
    to: Destination
    who: Asker
    lookup: Lookup
    node: NodeView
    cluster: Cluster | None
    steps: list[Step] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    def path(self) -> Path:
        """Return the whole path."""
        ours, count, endpoints = own.steps(self.node, self.to, self.lookup, self.who)
        refusal = own.cause(self.node, self.to, self.lookup, self.who, self.cluster)
        if refusal:
            self.causes.append(refusal)
        machine = self.node.machine
        if machine is None:
            self.steps += ours
            reached = [] if refusal else [(each, Reach.MAY) for each in endpoints]
            reach = Reach.NO if refusal else Reach.MAY
        else:
            journey, followed = self._travel(machine)
            self._tell(machine, journey, ours)
            reached, reach = self._ends(machine, journey, followed)
            if refusal and self.lookup.is_known:
                reach = Reach.NO
            self._around(machine, reach, endpoints)
        self._rivals()
        self.not_checked += self.node.lacks
        if machine is not None:
            self.not_checked.append("NetworkPolicies of other nodes")
        return Path(
            Origin.COMPUTED,
            Target(
                self.asked,
                self.to.address,
                self.to.port,
                self.to.protocol,
                self.lookup.service,
                self.lookup.kind,
            ),
            Client(self.who.address, self.who.what, self.who.interface),
            reach,
            tuple(self.steps),
            tuple(self._candidates(count, endpoints, reached)),
            tuple(self.causes or self._nothing_wrong(reach)),
            tuple(dict.fromkeys(self.not_checked)),
            node=self.node.name,
        )

    # ---- the packet's way ----

    def _travel(self, machine: Machine) -> tuple[Journey, list[Endpoint]]:
        """Send a packet through the rules of all tables.

        Return its journey, and the endpoints that were followed.
        """
        followed: list[Endpoint] = []

        def choose(branches: list[Branch]) -> list[Branch]:
            kept = []
            for branch in branches:
                ends = branch.packet.ends
                there = Endpoint(text(ends.destination), ends.destination_port or 0)
                if there not in followed and len(followed) < FOLLOWED:
                    followed.append(there)
                if there in followed:
                    kept.append(branch)
            return kept

        packet = Packet(
            Ends(
                pack(self.who.address or self.to.address),
                pack(self.to.address),
                None,
                self.to.port,
            ),
            PROTOCOLS[self.to.protocol],
            iif=self.who.interface,
        )
        traveller = Traveller(machine.rules, machine.near, choose)
        journey = traveller.arrive(packet) if self.who.interface else traveller.leave(packet)
        return journey, followed

    def _tell(self, machine: Machine, journey: Journey, ours: list[Step]) -> None:
        """Add the steps of all hooks, ours at the hook where the endpoint is chosen."""
        waiting = ours
        frontend = place(pack(self.to.address), self.to.port)
        for stop, met, steps in hook_steps(journey, frontend, machine.rule_text):
            self.steps += steps
            if waiting and stop.family == "inet" and stop.hook in {"prerouting", "output"}:
                self.steps += waiting
                waiting = []
            self._blame(met, machine)
        self.steps += waiting

    def _blame(self, met: Iterable[Met], machine: Machine) -> None:
        """Add the causes that are other programs' rules."""
        for one in met:
            if one.is_ours:
                continue
            for visit in one.dead:
                rule = visit.outcome.rule
                said = machine.rule_text(rule) if rule else ""
                self._add(causes.stopped_by_others(visit, said))
            for visit in one.visits:
                outcome = visit.outcome
                moved = outcome.packet.ends.destination != visit.packet.ends.destination
                port = outcome.packet.ends.destination_port != visit.packet.ends.destination_port
                if outcome.translated and (moved or port):
                    said = machine.rule_text(outcome.rule) if outcome.rule else ""
                    self._add(causes.translated_by_others(visit, said), first=True)

    def _add(self, cause: Cause, *, first: bool = False) -> None:
        if cause not in self.causes:
            self.causes.insert(0 if first else len(self.causes), cause)

    def _ends(
        self, machine: Machine, journey: Journey, followed: list[Endpoint]
    ) -> tuple[list[tuple[Endpoint, Reach]], Reach]:
        """Add the last steps to each endpoint.

        Return which endpoints are reached, and whether any is.
        """
        found: list[tuple[Endpoint, Reach]] = []
        for endpoint in followed:
            mine = [end for end in journey.ends if _goes_to(end, endpoint)]
            if not mine:
                continue
            good = [end for end in mine if end.arrives and self._arrives(machine, end, endpoint)]
            for end in mine:
                if end.branch.why:
                    self._no_way(machine, end, endpoint)
            reach = Reach.YES if len(good) == len(mine) else Reach.MAY if good else Reach.NO
            found.append((endpoint, reach))
        if not found:
            ended = any(end.arrives for end in journey.ends)
            for end in journey.ends:
                if end.branch.why:
                    self._no_way(machine, end, None)
            return [], Reach.YES if ended else Reach.NO
        reaches = {reach for _, reach in found}
        reach = reaches.pop() if len(reaches) == 1 else Reach.MAY
        if reach is Reach.MAY:
            self.not_checked += doubted(end.branch for end in journey.ends)
        return found, reach

    def _arrives(self, machine: Machine, end: End, endpoint: Endpoint) -> bool:
        """Add the steps of the last part of the way; return whether nothing is in it."""
        way = end.way
        name = str(endpoint) if self.lookup.is_known else ""
        if way is None:
            return True
        self._source(end, name)
        if end.delivered or way.local:
            self.steps.append(
                Step(
                    "route",
                    Place(PlaceKind.ROUTE),
                    endpoint.address,
                    "this node",
                    Outcome.OK,
                    None,
                    name,
                )
            )
            return True
        link = machine.near.link(way.device)
        state = machine.near.neighbour(way.gateway or endpoint.address, way.device)
        via = f"via {way.gateway} dev {way.device}" if way.gateway else f"dev {way.device}"
        said = f"{via}, neighbour {state or 'not asked yet'}"
        if way.mtu:
            said += f", MTU {way.mtu}"
        down = link is not None and not link.up
        bad = down or state in _DEAD
        self.steps.append(
            Step(
                "route",
                Place(PlaceKind.ROUTE),
                endpoint.address,
                f"{via}, which has no carrier" if down else said,
                Outcome.STOPPED if bad else Outcome.OK,
                None,
                name,
            )
        )
        if down:
            self._add(
                Cause(
                    "link-down",
                    f"The interface {way.device} to {endpoint} has no carrier: its other end is "
                    "down or gone.",
                    (f"ip -details link show {way.device}",),
                )
            )
        elif state in _DEAD:
            whom = way.gateway or endpoint.address
            self._add(
                Cause(
                    "neighbour",
                    f"{whom} does not answer on {way.device} (neighbour {state}): {endpoint} is "
                    "gone, or its network is broken.",
                    (f"ip neighbour show {whom} dev {way.device}",),
                )
            )
        elif way.gateway:
            self.not_checked.append(f"the way beyond {way.gateway}")
        self._same_bridge(machine, end, endpoint)
        return not bad

    def _source(self, end: End, name: str) -> None:
        if not self.lookup.is_known:
            return
        after = text(end.branch.packet.ends.source)
        masqueraded = after != self.who.address
        why = "masqueraded: answers come back through this node" if masqueraded else "kept"
        step = Step(
            "source",
            Place(PlaceKind.CONNTRACK),
            self.who.address,
            f"{after} ({why})",
            Outcome.OK,
            None,
            name,
        )
        if step not in self.steps:
            self.steps.append(step)

    def _same_bridge(self, machine: Machine, end: End, endpoint: Endpoint) -> None:
        """Name the switch that lets answers within a bridge pass without being translated back."""
        way = end.way
        if way is None or not self.who.interface or way.device != self.who.interface:
            return
        link = machine.near.link(way.device)
        six = ":" in endpoint.address
        tool = "ip6tables" if six else "iptables"
        setting = f"net/bridge/bridge-nf-call-{tool}"
        if (
            link
            and link.kind == "bridge"
            and text(end.branch.packet.ends.source) == self.who.address
            and machine.sysctl(setting) != "1"
        ):
            self._add(
                Cause(
                    "bridge-nf-call",
                    f"{endpoint} answers {self.who.address} directly within the bridge "
                    f"{way.device}, where the answer is not "
                    f"translated back: {setting.replace('/', '.')} is not 1.",
                    ("modprobe br_netfilter", f"sysctl -w {setting.replace('/', '.')}=1"),
                )
            )

    def _no_way(self, machine: Machine, end: End, endpoint: Endpoint | None) -> None:
        address = endpoint.address if endpoint else self.to.address
        six = ":" in address
        forwards = machine.sysctl("net/ipv6/conf/all/forwarding" if six else "net/ipv4/ip_forward")
        name = str(endpoint) if endpoint and self.lookup.is_known else ""
        self.steps.append(
            Step(
                "route",
                Place(PlaceKind.ROUTE),
                address,
                end.branch.why,
                Outcome.STOPPED,
                None,
                name,
            )
        )
        forwarded = forwards if self.who.interface else ""
        self._add(causes.no_route(end.branch.why, address, self.who.interface, forwarded))

    # ---- what else there is ----

    def _around(self, machine: Machine, reach: Reach, endpoints: list[Endpoint]) -> None:
        """Add what may be wrong on this node beside the way of this packet."""
        fill = machine.fill()
        if fill.is_full:
            self._add(
                Cause(
                    "conntrack-full",
                    f"The conntrack table is full ({fill.count} of {fill.limit}): the kernel drops "
                    "new connections.",
                    (f"sysctl -w net.netfilter.nf_conntrack_max={2 * fill.limit}",),
                ),
                first=True,
            )
        if self.lookup.is_known and len(endpoints) <= MOST:
            self._stale(machine, endpoints)
        if trouble := machine.trouble():
            self._add(
                Cause(
                    "behind",
                    "nftproxy on this node reports that it is not in step: "
                    f"{trouble.strip()[:200]}",
                    ("curl -s 127.0.0.1:10256/healthz",),
                )
            )
        for proxy in machine.other_proxies():
            self._add(
                Cause(
                    "other-proxy",
                    f"Another service proxy has rules on this node ({proxy}); which one translates "
                    "a connection first is up to "
                    "the order of their chains.",
                    ("nftproxy kube-proxy --help",),
                )
            )
        self.not_checked += [
            f"{each}: nftables does not show it" for each in machine.legacy_tables()
        ]
        del reach

    def _stale(self, machine: Machine, endpoints: list[Endpoint]) -> None:
        """Name conntrack entries that lead to endpoints which the table no longer has."""
        to = self.to
        if to.protocol != "udp":
            return
        known = {(each.address, each.port) for each in endpoints}
        stale = [
            each
            for each in machine.entries(to.family, to.protocol, to.address, to.port)
            if (each.answers_from, each.answers_port) not in known
            and each.source == self.who.address
        ]
        if stale:
            first = stale[0]
            self._add(
                Cause(
                    "stale-entry",
                    f"conntrack still sends the packets of {first.source} to "
                    f"{place(pack(first.answers_from), first.answers_port)}, "
                    "which is no endpoint any more.",
                    (
                        (
                            f"conntrack -D -p {to.protocol} --orig-src {first.source} --orig-dst "
                            f"{to.address} --orig-port-dst {to.port}"
                        ),
                    ),
                ),
                first=True,
            )

    def _rivals(self) -> None:
        """Name other Services that claim the same address."""
        if self.cluster is None or not self.lookup.is_known:
            return
        owner = self.lookup.service.partition(":")[0]
        for name in self.cluster.claims(self.to.frontend, self.to.family):
            if str(name) != owner:
                self._add(
                    Cause(
                        "claimed-twice",
                        f"{name} claims {self.to.frontend}, too; {owner} has it, and {name} gets "
                        "no connection there.",
                        (f"kubectl get service -n {name.namespace} {name.name} -o yaml",),
                    )
                )

    def _nothing_wrong(self, reach: Reach) -> Iterator[Cause]:
        if not self.lookup.is_known:
            yield Cause(
                "no-service",
                f"{place(pack(self.to.address), self.to.port)} is no Service's: nftproxy does not "
                "touch such packets.",
            )
        elif reach is Reach.YES:
            yield Cause("ok", "Nothing is wrong on this node.")
        elif self.node.machine is None:
            yield Cause("ok", "Nothing is wrong with these objects.")

    def _candidates(
        self, count: int, endpoints: list[Endpoint], reached: list[tuple[Endpoint, Reach]]
    ) -> Iterator[Candidate]:
        reaches = dict(reached)
        for each in endpoints:
            yield Candidate(
                each.address, each.port, used=True, share=1 / count, reach=reaches.get(each)
            )
        name, port = own.port_of(self.lookup, self.cluster)
        if self.cluster and name and port:
            here = Locality(self.node.name, self.cluster.zone(self.node.name))
            backends = self.cluster.backends(name, port, self.to.family, self.node.name)
            local = own.uses_local_list(self.lookup, self.who)
            yield from left_out(backends, set(map(str, endpoints)), here, local_only=local)


def _goes_to(end: End, endpoint: Endpoint) -> bool:
    ends = end.branch.packet.ends
    return (text(ends.destination), ends.destination_port or 0) == tuple(endpoint)
