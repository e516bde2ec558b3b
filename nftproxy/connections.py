"""How many connections each frontend and each endpoint got, from the packet counters of map elements.

Pure: a `Ledger` takes readings of the counters and adds up. What the figures are, and why they are so:

- A nat chain sees the first packet of a connection only, so a hit in one of its maps is a new connection (TCP, SCTP) or flow (UDP).
- A frontend is looked up in `sticky`, then `internal`, then `services`, and who falls through is seen again. So the first of these maps
  that has the frontend sees every connection, and it alone is taken; adding them up, or taking the largest, would count some twice.
- A client that session affinity knows is sent on by the map of clients, not by a slot. These connections are what `sticky` saw
  and the next map did not; they belong to the frontend but to no endpoint's count. For every service port, therefore:
  connections of its frontends = connections of its endpoints + connections by affinity.
- `no_endpoints` counts refused packets, as each new try of a refused client is one. Where the external policy is Local and the node has no
  endpoint, the frontend is in `internal` as well and outside clients fall through it to their refusal: they are taken off its count.
- Rewriting an element starts its counter anew; it is recognised by its new value, or a smaller count. What came between the
  last reading and the rewrite is lost, never counted twice.
- A figure begins at 0 with the first connection after our start, whatever the kernel had counted before, as Prometheus expects
  of a process that starts anew; nothing is shown for frontends that nobody uses.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from typing import NamedTuple

from nftproxy.address import Family
from nftproxy.compiler import Element, Frontend, Key, Value, Verdict
from nftproxy.readback import Counted
from nftproxy.selection import Endpoint

STEPS = ("no_endpoints", "services", "internal", "sticky")
"""The maps of frontends in the order of readings, which is that of look-ups backwards: what a map has seen, those before it have too."""

LISTS = ("endpoints", "local_endpoints")
"""The maps of slots, to be read after those."""


class Figure(Enum):
    """What is counted; the value is the name of the metric, without prefix and `_total`."""

    CONNECTIONS = "frontend_connections"
    BY_AFFINITY = "frontend_affinity_connections"
    REFUSED = "frontend_refused_packets"
    ENDPOINT = "endpoint_connections"


class Subject(NamedTuple):
    """Whose figure it is: a frontend or an endpoint of a service port."""

    family: Family
    service_port: str  # namespace/service:port name
    place: Frontend | Endpoint

    def labels(self) -> tuple[str, str, str, str, str]:
        """Return family, namespace, service, port name, and frontend or endpoint."""
        namespace, _, rest = self.service_port.partition("/")
        service, _, port = rest.partition(":")
        return str(self.family), namespace, service, port, str(self.place)


class _Growth(NamedTuple):
    """How much a counter grew since the last reading, and whether it was started anew in between."""

    packets: int
    anew: bool


class Ledger:
    """Figures that only grow; at most `limit` of them, the first that were used. Not for two threads at once."""

    def __init__(self, limit: int) -> None:
        self.left_out = 0  # figures that the limit kept out of the last reading
        self._limit = limit
        self._last: dict[tuple[str, Key], tuple[Value, int]] = {}  # what counters stood at, those at 0 left out
        self._exact: dict[tuple[Figure, Subject], int] = {}
        self._shown: dict[tuple[Figure, Subject], int] = {}

    @property
    def figures(self) -> Mapping[tuple[Figure, Subject], int]:
        """All figures that are not 0."""
        return self._shown

    def open(self, reading: Iterable[Counted]) -> None:
        """Take what the counters stand at as the beginning."""
        self._last = {(element.where, element.key): (element.value, packets) for element, packets in reading if packets}

    def enter(self, reading: Iterable[Counted]) -> None:
        """Add what the counters grew by since the last reading; the maps must come in the order of STEPS, then LISTS."""
        last: dict[tuple[str, Key], tuple[Value, int]] = {}
        seen = _Seen()
        for element, packets in reading:
            counter = (element.where, element.key)
            before = self._last.get(counter)
            if packets:
                last[counter] = (element.value, packets)
            seen.take(element, _growth(before, element.value, packets) if packets or before else None)
        self._last = last
        self._forget(seen)
        self.left_out = 0
        for (family, frontend), steps in seen.grown.items():
            if name := seen.names.get((family, frontend)):
                for figure, amount in _amounts(steps):
                    self._add(figure, Subject(family, name, frontend), amount)
        for subject, amount in seen.endpoints.items():
            self._add(Figure.ENDPOINT, subject, amount)

    def _add(self, figure: Figure, subject: Subject, amount: int) -> None:
        """Add to a figure. Maps are read one after the other, so a difference of two may go down a little: what is shown does not."""
        key = (figure, subject)
        if key not in self._exact:
            if amount <= 0:
                return
            if len(self._exact) >= self._limit:
                self.left_out += 1
                return
        self._exact[key] = exact = self._exact.get(key, 0) + amount
        self._shown[key] = max(exact, self._shown.get(key, 0))

    def _forget(self, seen: "_Seen") -> None:
        """Drop the figures of frontends and endpoints that are gone."""
        for key in [key for key in self._exact if not seen.has(key[1])]:
            del self._exact[key], self._shown[key]


class _Seen:
    """One reading, by frontend and by endpoint."""

    def __init__(self) -> None:
        self.names: dict[tuple[Family, Frontend], str] = {}
        self.grown: dict[tuple[Family, Frontend], dict[str, _Growth]] = {}
        self.endpoints: dict[Subject, int] = {}

    def take(self, element: Element, growth: _Growth | None) -> None:
        """Take in an element; `growth` None: its counter stands at 0 and did before."""
        step, family, proto = _place(element.where)
        value = element.value
        place = (family, _frontend(element.key, proto))
        if isinstance(value, Verdict):
            if value.comment:
                self.names[place] = value.comment
            if growth:
                self.grown.setdefault(place, {})[step] = growth
        elif isinstance(value, tuple) and (name := self.names.get(place)):
            subject = Subject(family, name, Endpoint(str(value[0]), int(value[1])))
            self.endpoints[subject] = self.endpoints.get(subject, 0) + (growth.packets if growth else 0)

    def has(self, subject: Subject) -> bool:
        """Whether the reading had a frontend or an endpoint."""
        if isinstance(subject.place, Endpoint):
            return subject in self.endpoints
        return self.names.get((subject.family, subject.place)) == subject.service_port


def _growth(before: tuple[Value, int] | None, value: Value, packets: int) -> _Growth:
    if before is None:
        return _Growth(packets, anew=False)
    if before[0] != value or packets < before[1]:
        return _Growth(packets, anew=True)
    return _Growth(packets - before[1], anew=False)


def _amounts(steps: Mapping[str, _Growth]) -> Iterator[tuple[Figure, int]]:
    """Turn the growth of a frontend's counters into that of its figures; a map that saw nothing yet is not in `steps`."""
    order = [steps[step] for step in ("sticky", "internal", "services") if step in steps]
    refused = steps.get("no_endpoints")
    if order:
        yield Figure.CONNECTIONS, order[0].packets - (refused.packets if refused else 0)
    if "sticky" in steps and not any(growth.anew for growth in order):
        yield Figure.BY_AFFINITY, order[0].packets - sum(growth.packets for growth in order[1:2])
    if refused:
        yield Figure.REFUSED, refused.packets


@cache
def _place(where: str) -> tuple[str, Family, str]:
    """Split the name of a map into step or list, family, and protocol (empty where it is part of the key)."""
    base, _, proto = where.removeprefix("nodeport_").partition("-")
    return base[:-1], Family.IPv4 if base[-1] == "4" else Family.IPv6, proto


def _frontend(key: Key, proto: str) -> Frontend:
    """Return the frontend of a key: an address but for NodePorts, a protocol but for slots, a port, a slot number but for verdicts."""
    fields = key[:-1] if proto else key
    address = str(fields[0]) if len(fields) > 2 - bool(proto) else ""
    return Frontend(address, proto or str(fields[-2]), int(fields[-1]))
