"""A connection that was seen, as a path: the steps of its first packet in order, then the answer.

Pure, apart from its questions to `Node`.

Every chain that the packet met is a step; for those of our table it says what they looked up.
"""

from dataclasses import dataclass, field

from nftproxy.kernel.headers import PacketEnd, PacketHeader
from nftproxy.model import Scheduler
from nftproxy.path import causes
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
    Reply,
    Step,
    Target,
)
from nftproxy.path.packet import place, text
from nftproxy.path.ruleset import OURS
from nftproxy.table.expressions import VerdictCode
from nftproxy.trace import ours
from nftproxy.trace.answers import Answers
from nftproxy.trace.chains import Chains
from nftproxy.trace.clients import NODE, POD
from nftproxy.trace.events import TraceVisit
from nftproxy.trace.flows import TracedFlow
from nftproxy.trace.node import TracedNode, unreachable

_BEFORE_ROUTING = {"prerouting", "output"}


@dataclass(slots=True)
class _Teller:
    """Puts the path of one connection together."""

    flow: TracedFlow
    node: TracedNode
    asked: str
    chains: Chains
    steps: list[Step] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    endpoint: str = ""
    share: float | None = None

    def tell(self) -> Path:
        self._forward()
        answer = Answers(self.flow, self.node, self.chains).answer()
        self.steps.append(answer.step)
        if answer.cause:
            self.causes.append(answer.cause)
        first, node = self.flow.first, self.node
        iif = node.link(self.flow.visits[0].first.iif)
        kind = node.clients.kind(first.family, first.source.address, iif)
        address, port = first.destination
        service, what = self._service()
        final = self.flow.final.destination
        endpoint = Candidate(
            text(final.address), final.port, used=True, share=self.share, reach=answer.reach
        )
        protocol = ours.protocol(first)
        return Path(
            Origin.OBSERVED,
            Target(self.asked, text(address), port, protocol, service, what),
            Client(text(first.source.address), kind, iif),
            answer.reach,
            tuple(self.steps),
            (endpoint,) if self.endpoint else (),
            tuple(self.causes),
            (),
            answer.reply,
            node.name,
        )

    def _service(self) -> tuple[str, str]:
        """Return the Service that was asked for, and what its address is."""
        first = self.flow.first
        wanted = text(first.destination.address), first.protocol, first.destination.port
        return self.node.services.get(wanted, ("", ""))

    # ---- the way there ----

    def _forward(self) -> None:
        before: PacketHeader = self.flow.first
        for index, visit in enumerate(self.flow.visits):
            if visit.header:
                before = visit.header
            after = next((v.header for v in self.flow.visits[index + 1 :] if v.header), None)
            if self.flow.ours(visit):
                continue
            if (visit.first.family, visit.first.table) == OURS:
                self._our_chain(visit, before, after)
            else:
                self._foreign_chain(visit, before, after)
            if visit.stopped:
                return
            self._routed(index)
        if self.flow.gone is None and self.flow.visits[-1].last.verdict == VerdictCode.ACCEPT:
            self._lost(before)

    def _our_chain(
        self, visit: TraceVisit, before: PacketHeader, after: PacketHeader | None
    ) -> None:
        name = visit.first.chain
        if name in ours.SOURCE_RANGES:
            if self.endpoint:  # once more, by the loopback interface
                return
            self.steps.append(ours.ranges(visit))
            if visit.stopped:
                said = (
                    f"{text(before.source.address)} is in no source range of "
                    f"{text(before.destination.address)}."
                )
                self.causes.append(Cause("source-range", said))
        elif name in ours.CHOICE:
            if not any(step.name == ours.NO_RANGES.name for step in self.steps):
                self.steps.append(ours.NO_RANGES)
            self.steps.append(ours.choice(visit, before))
            if ours.found(visit) and after and after.destination != before.destination:
                self._translated(visit, after)
        elif name in ours.REFUSAL:
            refused = ours.refusal(visit, rejects=self.node.rejects(visit.last))
            if refused:
                step, reason = refused
                self.steps.append(step)
                self.causes.append(_refused(reason, before, self._service()[0]))
        elif name == "nat-postrouting":
            self._source(before, after)

    def _translated(self, visit: TraceVisit, after: PacketHeader) -> None:
        self.endpoint = place(*after.destination)
        pick = ours.chosen(visit)
        by_chance = pick is not None and pick.scheduler is Scheduler.RANDOM
        number = ours.size(visit) if by_chance else 0
        self.share = 1 / number if number else None
        chance = f", one of {number}" if number > 1 else ""
        came_out = f"{self.endpoint}{chance}"
        self.steps.append(
            Step(
                "endpoint", Place(PlaceKind.TABLE), "", came_out, Outcome.FOUND, None, self.endpoint
            )
        )

    def _source(self, before: PacketHeader, after: PacketHeader | None) -> None:
        first = self.flow.first.source
        kind = self.node.clients.kind(
            before.family, first.address, self.node.link(self.flow.visits[0].first.iif)
        )
        if after and after.source != before.source:
            said = f"becomes {text(after.source.address)}: masqueraded"
        elif kind == POD:
            said = f"stays {text(before.source.address)}: it is a pod's"
        else:
            said = f"stays {text(before.source.address)}"
        self.steps.append(Step("source", Place(PlaceKind.TABLE), "", said, Outcome.OK))

    def _foreign_chain(
        self, visit: TraceVisit, before: PacketHeader, after: PacketHeader | None
    ) -> None:
        self.steps.append(self.chains.step(visit, before, after, endpoint=self.endpoint))
        said = self.node.text(visit.last)
        seen = self.chains.visit(visit, before, after)
        if visit.stopped:
            self.causes.append(causes.stopped_by_others(seen, said))
        elif seen.base.kind == "nat" and after and after.destination != before.destination:
            self.causes.append(causes.translated_by_others(seen, said))
            self.endpoint = place(*after.destination)

    def _routed(self, index: int) -> None:
        """Add the route, once the packet is past the hooks before it."""
        hook = self._hook(self.flow.visits[index])
        if hook not in _BEFORE_ROUTING or any(s.place.kind is PlaceKind.ROUTE for s in self.steps):
            return
        rest = self.flow.visits[index + 1 :]
        later = next((v for v in rest if not self.flow.ours(v)), None)
        following = next((v for v in rest if self._hook(v) not in _BEFORE_ROUTING), None)
        if following is None or following.header is None:
            return
        if later is not None and self._hook(later) == hook:
            return
        iif, oif = self.node.link(following.first.iif), self.node.link(following.first.oif)
        address = text(following.header.destination.address)
        said = "this node itself"
        if oif and oif != "lo":
            via = self.node.way(following.header, iif).gateway
            said = f"via {via} dev {oif}" if via else f"dev {oif}"
        self.steps.append(
            Step("route", Place(PlaceKind.ROUTE), address, said, Outcome.OK, None, self.endpoint)
        )

    def _hook(self, visit: TraceVisit) -> str:
        return self.chains.base(visit.first).hook

    def _lost(self, header: PacketHeader) -> None:
        """Add why a packet does not go on where no rule decided that."""
        if not self.flow.tracked:
            self._untracked()
            return
        last = self.flow.visits[-1].first
        iif = self.node.link(last.iif or self.flow.visits[0].first.iif)
        address = text(header.destination.address)
        way = self.node.way(header, iif)
        why, forwards = way.error, self.node.forwards(header)
        if not why and forwards != "0":
            silent = unreachable(self.node, header, way.device)
            said = f"dev {way.device}; " if way.device else ""
            said += "the neighbour does not answer" if silent else "no rule stops it, and it ends"
            cause = silent or Cause(
                "lost",
                f"The packet ends after chain {last.chain}, and no rule did that.",
                (f"ip route get {address}",),
            )
        else:
            said = why or "this node does not forward"
            cause = causes.no_route(why, address, iif, forwards)
        self.causes.append(cause)
        self.steps.append(
            Step(
                "route", Place(PlaceKind.ROUTE), address, said, Outcome.STOPPED, None, self.endpoint
            )
        )

    def _untracked(self) -> None:
        """Add that connection tracking, which comes next, has dropped a packet."""
        count, limit = self.node.tracking()
        full = 0 < limit <= count
        level = f"{count} of {limit} connections"
        said = f"the table is full: {level}" if full else "dropped before any rule is asked"
        where = Place(PlaceKind.CONNTRACK)
        self.steps.append(Step("conntrack", where, "", said, Outcome.STOPPED))
        if full:
            cause = Cause(
                "conntrack-full",
                f"Connection tracking has no room: {level}. New connections are dropped.",
                (f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}",),
            )
        else:
            cause = Cause(
                "conntrack-drop",
                f"Connection tracking drops the packet, with {level}.",
                ("conntrack -S",),
            )
        self.causes.append(cause)


def tell(flow: TracedFlow, node: TracedNode, asked: str) -> Path:
    """Return the path of a connection that was seen."""
    return _Teller(flow, node, asked, Chains(flow, node)).tell()


def _refused(reason: str, header: PacketHeader, service: str) -> Cause:
    there, address = place(*header.destination), text(header.destination.address)
    namespace, _, name = service.partition(":")[0].partition("/")
    slices = f"kubectl get endpointslices -n {namespace} -l kubernetes.io/service-name={name}"
    words = {
        "no-endpoints": f"{service or there} has no usable endpoint: connections are rejected.",
        "policy-local": f"The traffic policy of {service or there} is Local, and it has no "
        "endpoint on "
        "this node: connections are dropped.",
        "wrong-port": f"{address} is a ClusterIP without port {header.destination.port}/"
        f"{ours.protocol(header)}. Connections are rejected.",
        "unallocated": f"{address} is in the range of Services, but no Service has it. Packets are "
        "dropped.",
    }
    commands = (slices,) if service and reason in {"no-endpoints", "policy-local"} else ()
    return Cause(reason, words[reason], commands)


def unsent(asked: str, there: PacketEnd, protocol: str, why: str, node: TracedNode) -> Path:
    """Return the path of a connection that this node could not even begin."""
    address = text(there.address)
    step = Step("route", Place(PlaceKind.ROUTE), address, why, Outcome.STOPPED)
    return Path(
        Origin.OBSERVED,
        Target(asked, address, there.port, protocol),
        Client("", NODE),
        Reach.NO,
        (step,),
        causes=(causes.no_route(why, address, "", ""),),
        reply=Reply("silent"),
        node=node.name,
    )
