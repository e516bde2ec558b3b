"""Chains of other tables that a packet met, as steps and as causes.

Pure, apart from its questions to `TracedNode`.
"""

from dataclasses import dataclass

from nftproxy.kernel.headers import PacketHeader
from nftproxy.path import evaluate, hooks
from nftproxy.path.model import Outcome, Place, PlaceKind, Step, Whose
from nftproxy.path.model import Rule as Shown
from nftproxy.path.packet import Ends, Packet, Tracked, place, text
from nftproxy.path.ruleset import OURS, NftBaseChain, NftChain, NftRule, NftTable
from nftproxy.table.expressions import VerdictCode
from nftproxy.trace.events import POLICY, RULE, TraceEvent, TraceVisit
from nftproxy.trace.flows import TracedFlow
from nftproxy.trace.node import TracedNode

_VERBS = {
    VerdictCode.ACCEPT: "accepts",
    VerdictCode.STOLEN: "takes it away",
    VerdictCode.QUEUE: "hands it to a program",
}


@dataclass(frozen=True, slots=True)
class Chains:
    """Puts chains that one connection met into words."""

    flow: TracedFlow
    node: TracedNode

    def step(
        self,
        visit: TraceVisit,
        before: PacketHeader,
        after: PacketHeader | None,
        *,
        endpoint: str = "",
        prefix: str = "",
    ) -> Step:
        """Return the step about a chain of another table."""
        event, base = visit.last, self.base(visit.first)
        rule = self._rule(event)
        outcome = Outcome.STOPPED if visit.stopped else Outcome.OK
        verb = _VERBS.get(VerdictCode(event.verdict), "lets it pass")
        if visit.stopped:
            verb = "rejects" if self.node.rejects(event) else "drops"
        by_policy = event.kind == POLICY
        inside = "" if event.chain == base.chain.name else f" of chain {event.chain}"
        said = f"policy {verb}" if by_policy else f"rule{inside} {verb} (handle {event.rule})"
        if after and not visit.stopped and base.kind == "nat" and event.kind == RULE:
            if after.destination != before.destination:
                said = f"sends it to {place(*after.destination)} (handle {event.rule})"
            elif after.source != before.source:
                said = f"gives it the source {text(after.source.address)} (handle {event.rule})"
        family = base.chain.table.family
        where = Place(PlaceKind.HOOK, base.hook, family, base.priority)
        details = (f"rule {rule.text}",) if rule.text else ()
        name = f"{prefix}{base.hook}"
        looked_up = f"{base.chain.table} {base.chain.name}"
        return Step(name, where, looked_up, said, outcome, rule, endpoint, details)

    def _rule(self, event: TraceEvent) -> Shown:
        whose = Whose.OURS if (event.family, event.table) == OURS else Whose.FOREIGN
        if event.kind == POLICY:
            return Shown(whose, event.family, event.table, event.chain)
        said = self.node.text(event)
        return Shown(whose, event.family, event.table, event.chain, event.rule, said)

    def base(self, event: TraceEvent) -> NftBaseChain:
        """Return the base chain that a report names, as far as it is known."""
        found = self.node.base(event)
        if found:
            return found
        return NftBaseChain(
            NftChain(NftTable(event.family, event.table), event.chain), "filter", "", 0
        )

    def visit(
        self, visit: TraceVisit, before: PacketHeader, after: PacketHeader | None
    ) -> hooks.Visit:
        """Return the same as the evaluation has it, for whoever puts causes into words."""
        event, base = visit.last, self.base(visit.first)
        first = self.flow.first
        there = Packet(
            _ends(before),
            before.protocol,
            self.node.link(visit.first.iif),
            self.node.link(visit.first.oif),
            tracked=Tracked(_ends(first)),
        )
        chain = NftChain(base.chain.table, event.chain)
        rule = NftRule(chain, event.rule, ()) if event.kind == RULE else None
        reject = "icmp" if self.node.rejects(event) else ""
        moved = Packet(_ends(after or before), before.protocol, there.iif, there.oif)
        outcome = evaluate.ChainOutcome(event.verdict, moved, chain, rule, reject=reject)
        return hooks.Visit(base, outcome, there)


def _ends(header: PacketHeader) -> Ends:
    source, destination = header.source, header.destination
    return Ends(source.address, destination.address, source.port, destination.port)
