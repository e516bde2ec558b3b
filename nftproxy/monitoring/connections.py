"""How many connections each frontend and each endpoint got, from the packet counters of map elements.

Pure: a `Ledger` takes readings of the counters and adds up. What the figures are, and why they are so:

- A nat chain sees the first packet of a connection only, so a hit in one of its maps is a new connection (TCP, SCTP) or flow (UDP).
- A frontend is looked up once, in `services`, which sees every connection.
- A client that session affinity knows is sent on by the map of clients, not by a slot; all others pass `new_clients`. What
  `services` saw and `new_clients` did not belongs to the frontend but to no endpoint's count. For every service port, therefore:
  connections of its frontends = connections of its endpoints + connections by affinity.
- `no_endpoints` counts refused packets, as each new try of a refused client is one. Where the external policy is Local and the node has no
  endpoint, the frontend is in `services` as well and outside clients pass it on the way to their refusal: they are taken off its count.
- Rewriting an element starts its counter anew; it is recognised by its new value, or a smaller count. What came between the
  last reading and the rewrite is lost, never counted twice. Connections by affinity, a difference of two counters, are left out
  between two readings if one of these was new or started anew.
- A figure begins at 0 with the first connection after our start, whatever the kernel had counted before, as Prometheus expects
  of a process that starts anew; nothing is shown for frontends that nobody uses.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

from nftproxy.address import Family
from nftproxy.kernel.reader import Counted
from nftproxy.routes import Frontend, Key, Value, Verdict
from nftproxy.selection import Endpoint

STEPS = ("no_endpoints", "new_clients", "services")
"""What has frontends, in the order of readings, which is that of look-ups backwards: what one has seen, those before it have too."""

LISTS = ("endpoints", "local_endpoints")
"""The maps of slots."""

PREFIXES = ("", "nodeport_")
"""Of the names of all these maps: those that are keyed by address, and those for NodePorts."""

Reading = Iterable[tuple[str, Iterable[Counted]]]
"""Maps by name with their elements."""


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
    """How much a counter grew since the last reading."""

    packets: int
    anew: bool  # the counter is new, or was started anew in between


class Ledger:
    """Figures that only grow; at most `limit` of them, the first that were used. Not for two threads at once."""

    def __init__(self, limit: int) -> None:
        self.left_out = 0  # figures that the limit kept out of the last reading
        self._limit = limit
        self._last: _Standings = {}
        self._exact: dict[tuple[Figure, Subject], int] = {}
        self._shown: dict[tuple[Figure, Subject], int] = {}

    @property
    def figures(self) -> Mapping[tuple[Figure, Subject], int]:
        """All figures that are not 0."""
        return self._shown

    def open(self, reading: Reading) -> None:
        """Take what the counters stand at as the beginning."""
        self._take(reading)

    def enter(self, reading: Reading) -> None:
        """Add what the counters grew by since the last reading. Maps of frontends must come in the order of STEPS."""
        seen = self._take(reading)
        self._forget(seen)
        self.left_out = 0
        for subject, steps in seen.frontends():
            for figure, amount in _amounts(steps):
                self._add(figure, subject, amount)
        for subject, amount in seen.endpoints():
            self._add(Figure.ENDPOINT, subject, amount)

    def lost(self) -> None:
        """Note that the table is gone: whatever comes in its place counts from 0."""
        self._last = {}

    def _take(self, reading: Reading) -> "_Seen":
        """Compare with the last reading, and make this the last. A loop for a hundred thousand elements, most of them idle."""
        seen = _Seen()
        last: _Standings = {}
        for where, elements in reading:
            before = self._last.get(where, {})
            now = last[where] = {}
            values = seen.values.setdefault(where, {})
            grown = seen.grown.setdefault(where, {})
            for (_, key, value), packets in elements:
                values[key] = value
                if packets:
                    now[key] = (value, packets)
                elif key not in before:
                    continue
                grown[key] = _growth(before.get(key), value, packets)
        for where, key in seen.with_affinity():  # their rewrites matter even where they stood at 0
            last[where].setdefault(key, (seen.values[where][key], 0))
        self._last = last
        return seen

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
        known = {subject for _, subject in self._exact}
        present = seen.present(known)
        for key in [key for key in self._exact if key[1] not in present]:
            del self._exact[key], self._shown[key]


class _Seen:
    """One reading: values and growth of elements, by map and key. Counters that stand at 0 and did before have no growth."""

    def __init__(self) -> None:
        self.values: dict[str, dict[Key, Value]] = {}
        self.grown: dict[str, dict[Key, _Growth]] = {}

    def frontends(self) -> Iterator[tuple[Subject, dict[str, _Growth]]]:
        """Yield the frontends in use with the growth of their elements by step."""
        for family, prefix in _SIDES:
            maps = {step: self.grown.get(f"{prefix}{step}{family.digit}", {}) for step in STEPS}
            for key in dict.fromkeys(key for grown in maps.values() for key in grown):
                if subject := self._frontend(family, prefix, key):
                    yield subject, {step: grown[key] for step, grown in maps.items() if key in grown}

    def endpoints(self) -> Iterator[tuple[Subject, int]]:
        """Yield the growth of slots in use by endpoint, one that several frontends have more than once."""
        for where, grown in self.grown.items():
            for key, growth in grown.items():
                if subject := self._endpoint(where, key):
                    yield subject, growth.packets

    def present(self, known: set[Subject]) -> set[Subject]:
        """Return those of the known that the reading has."""
        places = {subject.place for subject in known}
        found = {
            s for s in known if isinstance(s.place, Frontend) and s == self._frontend(s.family, _prefix(s.place), s.place.key)
        }
        for where, values in self.values.items():
            if "-" in where:  # slots
                found.update(s for key, value in values.items() if value in places and (s := self._endpoint(where, key)))
        return found

    def with_affinity(self) -> Iterator[tuple[str, Key]]:
        """Yield the elements of frontends with affinity."""
        for family, prefix in _SIDES:
            for key in self.values.get(f"{prefix}new_clients{family.digit}", ()):
                for step in STEPS[1:]:
                    if key in self.values.get(where := f"{prefix}{step}{family.digit}", ()):
                        yield where, key

    def _frontend(self, family: Family, prefix: str, key: Key) -> Subject | None:
        """Return the frontend of a key of `services` and others; None if no element says whose it is."""
        for step in STEPS:
            value = self.values.get(f"{prefix}{step}{family.digit}", {}).get(key)
            if isinstance(value, Verdict) and value.comment:
                address = "" if prefix else str(key[0])
                return Subject(family, value.comment, Frontend(address, str(key[-2]), int(key[-1])))
        return None

    def _endpoint(self, where: str, key: Key) -> Subject | None:
        """Return the endpoint in a slot; None for other maps, and for slots of no frontend."""
        base, _, proto = where.partition("-")
        value = self.values[where][key]
        if not proto or not isinstance(value, tuple) or isinstance(value, Verdict):
            return None
        family = Family.IPv4 if base[-1] == "4" else Family.IPv6
        prefix = "nodeport_" if base.startswith("nodeport_") else ""
        frontend = self._frontend(family, prefix, (*key[:-2], proto, key[-2]))
        return frontend and Subject(family, frontend.service_port, Endpoint(str(value[0]), int(value[1])))


def _growth(before: tuple[Value, int] | None, value: Value, packets: int) -> _Growth:
    if before is None or before[0] != value or packets < before[1]:
        return _Growth(packets, anew=True)
    return _Growth(packets - before[1], anew=False)


def _amounts(steps: Mapping[str, _Growth]) -> Iterator[tuple[Figure, int]]:
    """Turn the growth of a frontend's counters into that of its figures."""
    services, new, refused = steps.get("services"), steps.get("new_clients"), steps.get("no_endpoints")
    if services:
        yield Figure.CONNECTIONS, services.packets - (refused.packets if refused else 0)
    if services and new and not (services.anew or new.anew):
        yield Figure.BY_AFFINITY, services.packets - new.packets
    if refused:
        yield Figure.REFUSED, refused.packets


def _prefix(frontend: Frontend) -> str:
    return "" if frontend.address else "nodeport_"


_SIDES = tuple((family, prefix) for family in Family for prefix in PREFIXES)
_Standings = dict[str, dict[Key, tuple[Value, int]]]  # by map; what counters stood at, most of those at 0 left out
