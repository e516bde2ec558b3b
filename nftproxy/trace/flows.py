"""Connections put together from reports.

What the first packet met, what its answer met, and when all is said. Pure.

The kernel gives a packet a number, and another one once it is translated. The end of the packet
that stays the same shows to which connection a new number belongs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nftproxy.kernel.headers import PacketEnd, PacketHeader
from nftproxy.path.packet import UDP
from nftproxy.table.expressions import VerdictCode
from nftproxy.trace.events import TraceEvent, TraceVisit
from nftproxy.trace.marks import ANSWERS, LAST, MARK, TRACKED

PATIENCE = 3.0  # seconds for an answer
LATE = 0.3  # seconds after which an answer is looked for beside the hooks
_REFUSAL = 0.15  # seconds for the answer to a packet that was stopped
_REST = 0.05  # seconds for the rest of what an answer meets
_LOST = 0.3  # seconds for the next report about a packet that was not stopped
_LEAVING, _ENTERING = LAST["postrouting"], LAST["input"]


class Aside(NamedTuple):
    """A packet of the endpoint that was seen on an interface; `ours`: it was for this node."""

    interface: str
    header: PacketHeader
    ours: bool


@dataclass(eq=False, slots=True)
class TracedFlow:
    """A connection: what its first packet and the first answer met."""

    table: str  # the name of the table that marks
    began: float
    visits: list[TraceVisit] = field(default_factory=list)
    answer: list[TraceVisit] = field(default_factory=list)
    left: float = 0.0  # when the latest report about the first packet came
    answered: float = 0.0
    took: float = 0.0  # seconds until the answer, by the clock of the kernel
    asides: list[Aside] = field(default_factory=list)
    silenced: bool = False  # looked for beside the hooks

    @property
    def first(self) -> PacketHeader:
        """The packet as it came."""
        header = self.visits[0].header
        assert header is not None  # noqa: S101 - a flow begins with one
        return header

    @property
    def final(self) -> PacketHeader:
        """The packet as it was seen last."""
        return next(visit.header for visit in reversed(self.visits) if visit.header)

    def ours(self, visit: TraceVisit) -> bool:
        """Whether a chain is of the table that marks."""
        return visit.first.table == self.table

    def foreign(self, visits: list[TraceVisit]) -> Iterator[TraceVisit]:
        """Yield the chains that are of other tables."""
        return (visit for visit in visits if not self.ours(visit))

    @property
    def stop(self) -> TraceVisit | None:
        """The chain that the packet did not get past."""
        return next((visit for visit in self.visits if visit.stopped), None)

    @property
    def gone(self) -> TraceVisit | None:
        """The chain by which the packet left this node or entered a process, if it did."""
        return next(
            (
                visit
                for visit in reversed(self.visits)
                if self.ours(visit) and visit.first.chain in {_LEAVING, _ENTERING}
            ),
            None,
        )

    @property
    def delivered(self) -> bool:
        """Whether the packet entered a process of this node."""
        return self.gone is not None and self.gone.first.chain == _ENTERING

    @property
    def tracked(self) -> bool:
        """Whether the packet got past connection tracking as one that begins a connection."""
        return any(
            self.ours(visit) and visit.first.chain in TRACKED.values() and visit.ended
            for visit in self.visits
        )

    @property
    def is_old(self) -> bool:
        """Whether conntrack knew the connection: then its mark is taken back."""
        return self.first.protocol == UDP and not self.stop and not self.tracked

    def due(self, now: float) -> bool:
        """Whether all that belongs to it must have been seen."""
        if self.answered:
            return now - self.answered > _REST
        if self.stop:
            return now - self.left > _REFUSAL
        if self.gone is None and self.visits[-1].last.verdict != VerdictCode.QUEUE:
            return now - self.left > _LOST
        return now - self.left > PATIENCE or (bool(self.asides) and now - self.left > PATIENCE / 2)

    def late(self, now: float) -> bool:
        """Whether it is time to look for an answer beside the hooks."""
        return (
            not (self.silenced or self.answered or self.stop)
            and self.gone is not None
            and now - self.left > LATE
        )

    def knows(self, protocol: int, source: PacketEnd, destination: PacketEnd) -> bool:
        """Whether its packet had these ends at any place."""
        way = (protocol, source, destination)
        return any(visit.header is not None and visit.header.way() == way for visit in self.visits)


class Flows:
    """All connections that are not complete yet."""

    def __init__(self, table: str, most: int) -> None:
        self._table = table
        self._left = most
        self._trails: dict[int, tuple[TracedFlow, list[TraceVisit]]] = {}
        self.open: list[TracedFlow] = []

    def feed(self, event: TraceEvent, now: float) -> None:
        """Take in a report."""
        trail = self._trail(event, now)
        if trail is None:
            return
        flow, visits = trail
        if not visits or visits[-1].ended or event.header:
            visits.append(TraceVisit())
        visits[-1].events.append(event)
        if visits is flow.visits:
            flow.left = now

    def end(self) -> None:
        """Take in no other connection."""
        self._left = 0

    def done(self, now: float) -> list[TracedFlow]:
        """Return what is complete, and forget it."""
        due = [flow for flow in self.open if flow.due(now)]
        for flow in due:
            self._forget(flow)
        found = [flow for flow in due if not flow.is_old]
        self._left += len(due) - len(found)
        return found

    def _forget(self, flow: TracedFlow) -> None:
        self.open.remove(flow)
        self._trails = {key: trail for key, trail in self._trails.items() if trail[0] is not flow}

    def _trail(self, event: TraceEvent, now: float) -> tuple[TracedFlow, list[TraceVisit]] | None:
        ours = event.table == self._table
        if ours and event.chain == MARK and event.header:
            self._trails.pop(event.identity, None)
            if not self._left:
                return None
            self._left -= 1
            flow = TracedFlow(self._table, now, left=now)
            self.open.append(flow)
            self._trails[event.identity] = flow, flow.visits
        elif ours and event.chain in ANSWERS.values() and event.header:
            found = self._asked(event.header)
            if found is None:
                return None
            found.answered = now
            self._trails[event.identity] = found, found.answer
        elif event.identity not in self._trails and event.header:
            trail = self._continued(event.header)
            if trail is None:
                return None
            self._trails[event.identity] = trail
        return self._trails.get(event.identity)

    def _asked(self, header: PacketHeader) -> TracedFlow | None:
        """Return the connection that a packet answers."""
        waiting = [flow for flow in self.open if not flow.answered]
        if header.is_error:  # the kernel reports too little of it to see the packet it is about
            return next(
                (
                    flow
                    for flow in waiting
                    if flow.first.family == header.family
                    and any(
                        visit.header and visit.header.source.address == header.destination.address
                        for visit in flow.visits
                    )
                ),
                None,
            )
        return next((flow for flow in waiting if flow.knows(*header.reversed())), None)

    def _continued(self, header: PacketHeader) -> tuple[TracedFlow, list[TraceVisit]] | None:
        """Return the connection whose packet was translated and has a new number since."""
        for flow in reversed(self.open):
            for visits in (flow.answer, flow.visits):
                last = next((visit.header for visit in reversed(visits) if visit.header), None)
                if last is None or last.protocol != header.protocol or not visits[-1].ended:
                    continue
                if header.source == last.source or header.destination == last.destination:
                    return flow, visits
        return None
