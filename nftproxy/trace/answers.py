"""What was answered to a connection, and how far the answer got.

Pure, apart from its questions to `TracedNode`.
"""

from dataclasses import dataclass
from typing import NamedTuple

from nftproxy.kernel.headers import PacketHeader
from nftproxy.path import causes
from nftproxy.path.model import Cause, Outcome, Place, PlaceKind, Reach, Reply, Step
from nftproxy.path.packet import place, text
from nftproxy.trace.chains import Chains
from nftproxy.trace.events import TraceVisit
from nftproxy.trace.flows import PATIENCE, TracedFlow
from nftproxy.trace.node import TracedNode, unreachable

_PORT_UNREACHABLE = {4: (3, 3), 16: (1, 4)}  # by the length of an address
_ICMP = {
    4: {
        (3, 0): "network unreachable",
        (3, 1): "host unreachable",
        (3, 3): "port unreachable",
        (3, 4): "packet too big",
        (3, 9): "network prohibited",
        (3, 10): "host prohibited",
        (3, 13): "administratively prohibited",
        (11, 0): "time to live exceeded",
    },
    16: {
        (1, 0): "no route",
        (1, 1): "administratively prohibited",
        (1, 3): "address unreachable",
        (1, 4): "port unreachable",
        (1, 5): "source address failed policy",
        (1, 6): "route rejected",
        (2, 0): "packet too big",
        (3, 0): "hop limit exceeded",
    },
}


class TracedAnswer(NamedTuple):
    """The answer, in the words of a path."""

    reach: Reach
    reply: Reply
    step: Step
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """Describes the answer to one connection."""

    flow: TracedFlow
    node: TracedNode
    chains: Chains

    def answer(self) -> TracedAnswer:
        """Return the answer, or its absence, in the words of a path."""
        flow = self.flow
        if flow.answer:
            return self._answered(flow.answer)
        if flow.stop or flow.gone is None:
            quiet = Step(
                "answer", Place(PlaceKind.REPLY), "", "none: the packet was stopped", Outcome.OK
            )
            return TracedAnswer(Reach.NO, Reply("silent"), quiet)
        return self._aside() if flow.asides else self._silent()

    def _answered(self, visits: list[TraceVisit]) -> TracedAnswer:
        header = visits[0].header
        assert header is not None  # noqa: S101 - an answer begins with one
        flow = self.flow
        who = text(header.source.address)
        milliseconds = round(max(flow.took, 1e-5) * 1000, 2)
        stop = next((visit for visit in visits if visit.stopped), None)
        if flow.stop:
            verb = "RST" if header.is_reset else f"ICMP {_icmp(header)}"
            said = f"this node refuses: {verb} to {text(header.destination.address)}"
            return TracedAnswer(
                Reach.NO, Reply("refused", "this node", milliseconds), _step(said, stop=True)
            )
        if header.is_reset or header.is_error:
            return self._refused(header, who, milliseconds)
        if stop:
            return self._answer_stopped(visits, stop, who, milliseconds)
        reply = Reply("answered", place(*header.source), milliseconds)
        return TracedAnswer(
            Reach.YES, reply, _step(f"answered after {milliseconds} ms", who=place(*header.source))
        )

    def _refused(self, header: PacketHeader, who: str, milliseconds: float) -> TracedAnswer:
        there = self.flow.final.destination
        reply = Reply("refused", who, milliseconds)
        if header.is_reset:
            said = f"RST from {who}: nothing listens on {there.port}"
        elif header.icmp == _PORT_UNREACHABLE[len(header.source.address)]:
            said = f"ICMP port unreachable from {who}: nothing listens on {there.port}"
        else:
            said = f"ICMP {_icmp(header)} from {who}"
            cause = Cause("unreachable", f"{who} reports {_icmp(header)} for {place(*there)}.")
            return TracedAnswer(Reach.NO, reply, _step(said, stop=True), cause)
        cause = Cause("endpoint-refuses", f"The endpoint refuses: {said}.")
        return TracedAnswer(Reach.NO, reply, _step(said, stop=True), cause)

    def _answer_stopped(
        self, visits: list[TraceVisit], stop: TraceVisit, who: str, milliseconds: float
    ) -> TracedAnswer:
        header = next(v.header for v in reversed(visits[: visits.index(stop) + 1]) if v.header)
        step = self.chains.step(stop, header, None, prefix="answer, ")
        seen = self.chains.visit(stop, header, None)
        cause = causes.stopped_by_others(seen, self.node.text(stop.last))
        cause = Cause(cause.code, f"The answer does not get back. {cause.text}", cause.commands)
        return TracedAnswer(Reach.NO, Reply("answered", who, milliseconds), step, cause)

    def _aside(self) -> TracedAnswer:
        """Say what an answer does that the hooks of this node have not seen."""
        seen = next((one for one in self.flow.asides if one.ours), self.flow.asides[0])
        who, client = place(*seen.header.source), text(seen.header.destination.address)
        if seen.ours:
            said = (
                f"{who} answers, and the answer ends at {seen.interface} before connection tracking"
            )
            cause = Cause(
                "answer-dropped",
                f"The answer of {who} comes in by {seen.interface} and is dropped before "
                "connection "
                "tracking: by rp_filter, or by a rule of a chain with a priority below -200.",
                (f"sysctl net.ipv4.conf.{seen.interface}.rp_filter",),
            )
            return TracedAnswer(Reach.NO, Reply("silent", who), _step(said, stop=True), cause)
        said = (
            f"{who} answers {client} directly (seen on {seen.interface}), past the hooks of "
            "this node"
        )
        cause = Cause(
            "passed-by",
            f"{who} answers {client} directly, so nothing restores the address that the client "
            "asked "
            "for, and the client takes the answer for a stranger's.",
            ("modprobe br_netfilter", "sysctl -w net.bridge.bridge-nf-call-iptables=1"),
        )
        return TracedAnswer(Reach.NO, Reply("passed by", who), _step(said, stop=True), cause)

    def _silent(self) -> TracedAnswer:
        flow = self.flow
        final, gone = flow.final, flow.gone
        assert gone is not None  # noqa: S101 - asked only for what left
        oif = self.node.link(gone.first.oif)
        there = place(*final.destination)
        said = f"no answer in {PATIENCE:g} s"
        cause = None if flow.delivered else unreachable(self.node, final, oif)
        if cause is None:
            where = "went to a process of this node" if flow.delivered else f"left by {oif}"
            cause = Cause(
                "silent",
                f"{there} does not answer: the packet {where}, and no answer came to this node. "
                "The "
                "endpoint is silent, its firewall drops, or its answer takes another way.",
            )
        return TracedAnswer(Reach.NO, Reply("silent"), _step(said, stop=True), cause)


def _icmp(header: PacketHeader) -> str:
    known = _ICMP[len(header.source.address)]
    return known.get(header.icmp, f"type {header.icmp[0]} code {header.icmp[1]}")


def _step(said: str, *, who: str = "", stop: bool = False) -> Step:
    outcome = Outcome.STOPPED if stop else Outcome.OK
    return Step("answer", Place(PlaceKind.REPLY), who, said, outcome)
